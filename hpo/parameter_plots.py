"""Trials across the parameters of a search: each parameter against the score, and all of them in a row."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from hpo.page import COLOURS, DASHES, LEGEND, Figure, figure, label, lines
from hpo.scored import COMPLETE, OTHERS, Scored
from search_spaces.space import Choice, Range, Space

EARLY_TO_LATE = [[0, "#a9a9a9"], [1, COLOURS[0]]]
FIFTHS = [  # the best first
    {"color": colour, "opacity": opacity}
    for colour, opacity in ((COLOURS[0], 0.8), ("#5589b8", 0.6), ("#6f8fab", 0.45), ("#80919f", 0.35), ("#888", 0.3))
]
OF_THE_BEST = {"color": COLOURS[1], "opacity": 1}
PAD = 0.05  # of an axis, beyond its ends
GOLDEN = 0.618  # trials in a row, with equal values, are drawn far from each other
BETWEEN = 42  # pixels from one axis to the next
NARROW = 36  # characters that fit along an axis on a telephone


@dataclass(frozen=True)
class Axis:
    """Of one parameter: its ends are its bounds, or farther where a trial lies beyond them."""

    levels: tuple[Any, ...]  # of a categorical parameter
    low: float
    high: float
    is_log: bool

    def number(self, value: Any) -> float | None:
        if self.levels:
            return float(self.levels.index(value)) if value in self.levels else None
        return float(value) if _is_number(value, is_log=self.is_log) else None

    def place(self, value: Any) -> float | None:
        """From 0 to 1."""
        if (number := self.number(value)) is None:
            return None
        low, high, number = (math.log(at) if self.is_log else at for at in (self.low, self.high, number))
        return round((number - low) / ((high - low) or 1), 4)

    def texts(self) -> list[tuple[float, str]]:
        """What stands along it, and where."""
        if self.levels:
            widest = max(NARROW // len(self.levels), 4)
            return [(self.place(level) or 0.0, label(str(level), widest)) for level in self.levels]
        return [(0.0, f"{self.low:.4g}"), (1.0, f"{self.high:.4g}")]


def axis_of(parameter: Range, values: Iterable[Any]) -> Axis:
    if isinstance(parameter, Choice):
        levels = tuple(dict.fromkeys([*parameter.choices, *values]))
        return Axis(levels, 0.0, len(levels) - 1.0, is_log=False)
    numbers = [value for value in values if _is_number(value, is_log=parameter.log)]
    return Axis((), min([parameter.low, *numbers]), max([parameter.high, *numbers]), parameter.log)


def _is_number(value: Any, *, is_log: bool) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and (value > 0 or not is_log)


def slice_of(shown: Sequence[Scored], name: str, parameter: Range) -> Figure:
    """Values against scores; later trials are bluer, the best is marked."""
    axis = axis_of(parameter, _values(shown, name))
    numbers = [(one, number) for one in shown if (number := axis.number(one.trial.params[name])) is not None]
    scale = {"thickness": 6, "outlinewidth": 0, "nticks": 4, "title": {"text": "trial", "font": {"size": 12}}}
    marker = {
        "size": 7,
        "color": [one.number for one, _ in numbers],
        "symbol": ["circle" if one.kind in (COMPLETE, OTHERS) else "circle-open" for one, _ in numbers],
        "colorscale": EARLY_TO_LATE,
        "cmin": 0,
        "cmax": max([1, *(one.number for one in shown)]),
        "colorbar": scale,
    }
    best = {"size": 11, "symbol": "diamond", "color": COLOURS[1]}
    y_axis = {"title": {"text": "spearman"}, "tickformat": ".2~f", "nticks": 5}
    traces = [_points(numbers, axis, marker), _points([pair for pair in numbers if pair[0].is_best], axis, best)]
    x_axis = _x_axis(axis) | {"automargin": True, "autotickangles": [0, -30, -60, -90]}
    return figure(traces, 260, x_axis, y_axis, shapes=_bounds(parameter), showlegend=False)


def _points(numbers: Sequence[tuple[Scored, float]], axis: Axis, marker: Figure) -> Figure:
    def aside(one: Scored) -> float:
        return 0.5 * (one.number * GOLDEN % 1 - 0.5) if axis.levels else 0.0

    return {
        "type": "scatter",
        "mode": "markers",
        "x": [float(f"{number + aside(one):.5g}") for one, number in numbers],
        "y": [round(one.score, 4) for one, _ in numbers],
        "hovertext": [
            f"trial {one.number}: {one.score:.4f}<br>{_worded(axis.levels[int(n)] if axis.levels else n)}"
            for one, n in numbers
        ],
        "hoverinfo": "text",
        "marker": marker,
    }


def _x_axis(axis: Axis) -> Figure:
    if axis.levels:
        texts = [label(str(level), 14) for level in axis.levels]
        return {"tickvals": [*range(len(texts))], "ticktext": texts, "range": [-0.5, len(texts) - 0.5]}
    low, high = (math.log10(end) if axis.is_log else end for end in (axis.low, axis.high))
    pad = PAD * (high - low)
    span = {"range": [low - pad, high + pad], "nticks": 5, "tickformat": "", "zeroline": False}
    if not axis.is_log:
        return span
    firsts = (1,) if high - low > 2 else (1, 3) if high - low > 1.2 else (1, 2, 5)
    powers = range(math.ceil(high), math.floor(low) - 1, -max(round((high - low) / 4), 1))
    ticks = [first * 10.0**power for power in powers for first in firsts]
    return span | {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _bounds(parameter: Range) -> list[Figure]:
    if isinstance(parameter, Choice):
        return []
    line = DASHES | {"yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    return [line | {"x0": bound, "x1": bound} for bound in (parameter.low, parameter.high)]


def parallel(shown: Sequence[Scored], names: Sequence[str], space: Space) -> Figure:
    """Axes lie one below the other, so that their names can be read; a line comes down through a trial's values.

    In plain lines, a fifth of the trials in one colour: plotly's own kind of plot needs WebGL and eval.
    """
    axes = {name: axis_of(space[name], _values(shown, name)) for name in names}
    scores = [one.score for one in shown] or [0.0]
    axes["spearman"] = Axis((), min(scores), max(scores), is_log=False)
    others = [one for one in shown if not one.is_best]
    parts = [[one for i, one in enumerate(others) if 5 * i // len(others) == fifth] for fifth in range(5)]
    traces = [_trails(part, axes, look) for part, look in zip(parts, FIFTHS, strict=True)][::-1]
    traces.append(_trails([one for one in shown if one.is_best], axes, OF_THE_BEST) | {"mode": "lines+markers"})
    rows = [*range(len(axes))]
    y_axis: Figure = {"range": [len(rows) - 0.4, -0.4], "tickvals": rows, "ticktext": [_folded(name) for name in axes]}
    y_axis |= {"gridwidth": 2, "zeroline": False, "ticklabelstandoff": 6, "tickformat": ""}
    x_axis = {"range": [-PAD, 1 + PAD], "visible": False}
    texts = [_text(at, row, text) for row, axis in enumerate(axes.values()) for at, text in axis.texts()]
    legend = LEGEND | {"traceorder": "reversed"}
    return figure(traces, 70 + BETWEEN * len(rows), x_axis, y_axis, annotations=texts, legend=legend)


def _trails(shown: Sequence[Scored], axes: Mapping[str, Axis], look: Figure) -> Figure:
    """One trace, with a gap after each trial."""
    x, y, texts = list[float | None](), list[int | None](), list[str]()
    for one in shown:
        values = one.trial.params | {"spearman": one.score}
        said = [f"trial {one.number}: {one.score:.4f}"]
        said += [f"{label(name)}: {_worded(one.trial.params[name])}" for name in axes if name in one.trial.params]
        x += [*(axis.place(values.get(name)) for name, axis in axes.items()), None]
        y += [*range(len(axes)), None]
        texts += ["<br>".join(said)] * (len(axes) + 1)
    name = f"{shown[-1].score:.3f} to {shown[0].score:.3f}" if len(shown) > 1 else ""
    name = name or "".join(f"trial {one.number}" for one in shown)
    trace = {"type": "scatter", "mode": "lines", "name": name, "hoverinfo": "text", "opacity": look["opacity"]}
    return trace | {"x": x, "y": y, "hovertext": texts, "line": {"color": look["color"], "width": 1.5}}


def _values(shown: Sequence[Scored], name: str) -> list[Any]:
    return [one.trial.params[name] for one in shown if name in one.trial.params]


def _worded(value: Any) -> str:
    return lines(f"{value:.4g}" if isinstance(value, float) else str(value))


def _folded(name: str) -> str:
    """In lines that leave room for the plot."""
    return "<br>".join(escape(part, quote=False) for part in re.findall(r".{1,14}(?:[_@.-]|$)|.{1,15}", name)[:3])


def _text(at: float, row: int, text: str) -> Figure:
    """Below its axis."""
    side = "left" if at == 0 else "right" if at == 1 else "center"
    place = {"x": at, "y": row, "xanchor": side, "yanchor": "top", "showarrow": False}
    return place | {"text": text, "font": {"size": 11}, "borderpad": 0, "captureevents": False}
