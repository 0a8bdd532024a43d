"""The plots of a report: plain JSON of plotly that any page can show, legible by itself on white and on black."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, isfinite
from typing import Any

from optuna.trial import FrozenTrial

from hpo.config import StudyFile, searched
from hpo.feasible import best_trials
from hpo.model_plots import calibration, precision_recall, similarities
from hpo.page import COLOURS, DASHES, Figure, bars, label, lines, with_legend
from hpo.parameter_plots import parallel, slice_of
from hpo.scored import COMPLETE, FAILED, OTHERS, PRUNED, RUNNING, Scored, lowest_of_most, scored_trials, shown_of, some
from hpo.study import BASELINE

LOOKS: dict[str, dict[str, Any]] = {
    FAILED: {"color": "#d04a4a", "symbol": "cross", "size": 7},
    PRUNED: {"color": "#8a8a8a", "symbol": "x-thin-open", "size": 6},
    RUNNING: {"color": "#2e9d62", "symbol": "triangle-up", "size": 8},
    OTHERS: {"color": COLOURS[0], "symbol": "circle-open", "size": 7},
    COMPLETE: {"color": COLOURS[0], "symbol": "circle", "size": 7},
}
DASHED = ("dot", "dashdot", "longdashdot")  # of one baseline after another
# The best trials, and of the others so many at most: a browser draws each as an element of its own.
POINTS, CURVES, LINES, IN_A_SLICE = (100, 1_900), (30, 70), (1, 199), (50, 350)
MOST_REPORTS = 100  # of a curve
DECADES = [first * 10**power for power in range(1, 9) for first in (1, 3)]  # examples
MOST_BARS, MOST_AXES, MOST_SLICES = 15, 8, 12  # parameters
SLICES = "Each parameter against Spearman"


@dataclass(frozen=True)
class Plot:
    name: str  # an id
    title: str
    note: str
    figure: Figure  # fills the box that it is shown in
    height: int  # pixels, on a page
    group: str = ""  # of small ones that are read side by side

    @property
    def bare(self) -> Figure:
        """For a page that says itself what it shows."""
        layout = {key: value for key, value in self.figure["layout"].items() if key != "title"}
        return self.figure | {"layout": layout | {"height": self.height}}


def plots(trials: Sequence[FrozenTrial], file: StudyFile, importances: Mapping[str, float]) -> list[Plot]:
    """Those that have data. `importances`: shares, by parameter; may be empty."""
    scored = scored_trials(trials, file)
    order = sorted(searched(file), key=lambda name: -importances.get(name, 0.0))
    found = [
        _best_so_far(scored, file),
        _curves(scored),
        _importances(importances),
        _parallel(scored, file, order),
        *(plot for best in best_trials(trials, file, 1) for plot in _of_model(best)),
        *_slices(scored, file, order),
    ]
    return [plot for plot in found if plot.figure["data"]]


def _plot(name: str, title: str, note: str, drawn: Figure, group: str = "") -> Plot:
    """With its title, for whoever shows it alone."""
    layout = {key: value for key, value in drawn["layout"].items() if key != "height"}
    said = {"text": lines(note, 80), "font": {"size": 12}}
    place = {"x": 0, "xanchor": "left", "pad": {"l": 8}, "yref": "container", "automargin": True, "font": {"size": 16}}
    whole = drawn | {"layout": layout | {"title": {"text": lines(title), "subtitle": said} | place}}
    return Plot(name, title, note, whole, drawn["layout"]["height"], group)


def _best_so_far(scored: Sequence[Scored], file: StudyFile) -> Plot:
    shown, levels = some(scored, *POINTS), _levels(scored, file)
    traces = [_points(kind, [one for one in shown if one.kind == kind]) for kind in LOOKS]
    heights = [*(one.score for one in shown), *(height for height, _ in levels.values())] or [0.0]
    y_axis = {"title": {"text": "spearman"}, "range": [min(heights) - 0.03, max(heights) + 0.03], "tickformat": ".1f"}
    across = DASHES | {"xref": "paper", "x0": 0, "x1": 1, "showlegend": True}
    marks = [across | {"y0": height, "y1": height, "name": name} | look for name, (height, look) in levels.items()]
    note = f"{shown_of(shown, scored)}. A pruned trial counts with the best that it reported"
    if any(one.kind == OTHERS for one in scored):
        note += "; one below a floor or beyond a limit is not eligible as the best"
    x_axis = {"title": {"text": "trial"}}
    drawn = with_legend([*traces, _best_line(scored)], 420, x_axis, y_axis, shapes=marks)
    return _plot("best-so-far", "Best so far", f"{note}.", drawn)


def _points(kind: str, shown: Sequence[Scored]) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": kind,
        "x": [one.number for one in shown],
        "y": [round(one.score, 4) for one in shown],
        "hovertext": [f"trial {one.number}: {one.score:.4f}, {kind}" for one in shown],
        "hoverinfo": "text",
        "marker": LOOKS[kind] | {"opacity": 0.8},
    }


def _best_line(scored: Sequence[Scored]) -> Figure:
    """Of those that may be the best, as it stood after each trial."""
    candidates = sorted((one for one in scored if one.kind == COMPLETE), key=lambda one: one.number)
    best = list(accumulate((one.score for one in candidates), max))
    rises = [i for i in range(len(best)) if not i or best[i] > best[i - 1]]
    last = max((one.number for one in scored), default=0)
    steps = [(candidates[i].number, round(best[i], 4)) for i in rises]
    steps += [(last, steps[-1][1])] if steps else []
    look = {"type": "scatter", "mode": "lines", "name": "best so far", "hoverinfo": "skip"}
    line = {"shape": "hv", "width": 2.5, "color": COLOURS[1]}
    return look | {"x": [number for number, _ in steps], "y": [score for _, score in steps], "line": line}


def _levels(scored: Sequence[Scored], file: StudyFile) -> dict[str, tuple[float, Figure]]:
    """What to compare with, by its name with the number."""
    levels = dict[str, tuple[float, Figure]]()
    for one in sorted(scored, key=lambda one: one.number):
        if (name := one.trial.user_attrs.get(BASELINE)) and one.kind in (COMPLETE, OTHERS):
            dash = DASHED[len(levels) % len(DASHED)]
            levels[f"{label(str(name))} {one.score:.3f}"] = one.score, {"line": {"color": "#888", "dash": dash}}
    if (target := file.targets.get("spearman")) is not None:
        levels[f"target {target:.2f}"] = target, {"line": {"color": "#2e9d62", "dash": "dash"}}
    known = (one.trial.user_attrs.get("ceilings") or {} for one in scored)
    if ceiling := next((found["spearman"] for found in known if "spearman" in found), None):
        levels[f"ceiling {ceiling:.3f}"] = ceiling, {"line": {"color": "#d04a4a", "dash": "solid"}}
    return levels


def _curves(scored: Sequence[Scored]) -> Plot:
    reported = [one for one in scored if one.trial.intermediate_values]
    shown = some(reported, *CURVES)
    traces = [_lines_of(kind, [one for one in shown[::-1] if one.kind == kind and not one.is_best]) for kind in LOOKS]
    best = [one for one in shown if one.is_best]
    on_top = _lines_of("".join(f"trial {one.number}, the best" for one in best), best)
    on_top |= {"mode": "lines+markers", "line": {"color": COLOURS[1], "width": 3}, "opacity": 1}
    x_axis = {"title": {"text": "examples seen"}, "type": "log", "tickvals": DECADES, "tickformat": "~s"}
    y_axis = {"title": {"text": "spearman"}, "tickformat": ".2~f"}
    drawn = with_legend([*traces, on_top], 420, x_axis, y_axis)
    note = shown_of(shown, reported)
    if len(shown) < len(reported):
        note += f": the {CURVES[0]} best, and a sample of the others"
    return _plot("learning-curves", "Learning curves", f"{note}.", drawn)


def _lines_of(name: str, shown: Sequence[Scored]) -> Figure:
    """One trace, with a gap after each line."""
    x, y, texts = list[int | None](), list[float | None](), list[str]()
    for one in shown:
        reports = sorted(item for item in one.trial.intermediate_values.items() if isfinite(item[1]))
        reports = reports[:: max(ceil(len(reports) / MOST_REPORTS), 1)]
        x += [*(step for step, _ in reports), None]
        y += [*(round(value, 4) for _, value in reports), None]
        texts += [*(f"trial {one.number}: {value:.4f} at {step:,} examples" for step, value in reports), ""]
    look = {"type": "scatter", "mode": "lines", "name": name, "hoverinfo": "text", "opacity": 0.5}
    line = {"width": 1.3, "color": LOOKS.get(name, LOOKS[COMPLETE])["color"]}
    line |= {"dash": "dot"} if name == OTHERS else {}
    return look | {"x": x, "y": y, "hovertext": texts, "line": line}


def _importances(importances: Mapping[str, float]) -> Plot:
    largest = dict(sorted(importances.items(), key=lambda item: -item[1])[:MOST_BARS])
    note = "The share of each parameter in what sets the best trials apart; which is more than chance, the findings say"
    if len(largest) < len(importances):
        note += f"; {len(largest)} of {len(importances)} parameters shown"
    return _plot("importances", "Importances", f"{note}.", bars(largest, form=".1%", least=0.01))


def _parallel(scored: Sequence[Scored], file: StudyFile, order: Sequence[str]) -> Plot:
    done = [one for one in scored if one.kind in (COMPLETE, OTHERS)]
    shown, names = some(done, *LINES), order[:MOST_AXES]
    note = f"A line is a complete trial, an axis a parameter; {shown_of(shown, done)}, coloured by score"
    if len(names) < len(order):
        note += f"; {len(names)} of {len(order)} parameters shown, the most important"
    return _plot("parallel", "Trials across parameters", f"{note}.", parallel(shown, names, searched(file)))


def _slices(scored: Sequence[Scored], file: StudyFile, order: Sequence[str]) -> list[Plot]:
    lowest, found = lowest_of_most(scored), list[Plot]()
    for rank, name in enumerate(order[:MOST_SLICES]):
        having = [one for one in scored if name in one.trial.params]
        shown = some([one for one in having if one.score >= lowest], *IN_A_SLICE)
        note = shown_of(shown, having)
        if any(one.score < lowest for one in having):
            note += f", none below {lowest:.2f}"
        if any(one.kind not in (COMPLETE, OTHERS) for one in shown):
            note += "; hollow: not complete"
        drawn = slice_of(shown, name, searched(file)[name])
        found.append(_plot(f"slice-{rank}", name, f"{note}.", drawn, SLICES))
    return found


def _of_model(best: FrozenTrial) -> list[Plot]:
    """Of the best trial's model, on held-out pairs."""
    found, threshold = best.user_attrs.get("diagnosis") or {}, best.user_attrs.get("threshold")
    is_probability, who = found.get("calibrated") == "head", f"Trial {best.number}, the best, on held-out pairs"
    told = "" if is_probability else "; a cosine is no probability"
    curve = precision_recall(found.get("precision_recall", []), threshold)
    histogram = similarities(found.get("similarities", {}), threshold)
    shares = calibration(found.get("calibration", []), is_probability=is_probability)
    return [
        _plot("precision-recall", "Precision and recall", f"{who}, by the threshold from which they match.", curve),
        _plot("similarities", "Similarities by grade", f"{who}: how often which cosine, by grade.", histogram),
        _plot("calibration", "Calibration", f"{who}: what share of them are matches{told}.", shares),
    ]
