"""`hpo check-data -o page.html`: what an export holds, as one page of plots that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import Any

from hpo.files import write_text
from objectives.statistics import FEW, Statistics

LARGEST = 30  # categories that have a bar of their own
WIDEST = 24  # characters of a label beside a bar
TARGET = 0.8  # of a study file that names none
COLOURS, GREY = ("#3a7fc0", "#c0651a"), "rgba(128,128,128,0.3)"  # legible on white and on black
AXIS = {"gridcolor": GREY, "zerolinecolor": GREY, "fixedrange": True, "automargin": True, "tickformat": ","}
PLAIN = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "dragmode": False}
DASHES = {"type": "line", "line": {"dash": "dash", "color": "#888"}}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>{name}</title><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 1240px; margin: 0 auto; padding: 16px; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin: 0; }} p {{ margin: 0; opacity: 0.75; font-size: 0.9rem; }}
td + td {{ padding-left: 24px; text-align: right; white-space: nowrap; }} ul {{ margin: 0; padding-left: 20px; }}
div.parts {{ columns: 2 440px; column-gap: 40px; }} section {{ break-inside: avoid; padding-bottom: 32px; }}
.cartesianlayer text, .infolayer text {{ fill: currentColor !important; }}
</style></head><body><h1>{name}</h1><div class="parts"><section><h2>Key figures</h2><table>{figures}</table></section>
<section><h2>What needs attention</h2><ul>{findings}</ul></section></div><div class="parts">{plots}</div></body></html>
"""

Figure = dict[str, Any]


def write_data_page(path: Path, name: str, found: Statistics) -> None:
    """Raises InputError where it cannot be written."""
    from plotly.io import to_html

    plots = ""
    for number, (title, note, figure) in enumerate(_plots(found)):
        form: dict[str, Any] = {"full_html": False, "validate": False, "config": {"displayModeBar": False}}
        plot = to_html(figure, include_plotlyjs=not number, div_id=f"plot{number}", **form)
        plots += f"<section><h2>{title}</h2><p>{note}</p>{plot}</section>"
    figures = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in _key_figures(found).items())
    findings = "".join(f"<li>{escape(finding)}</li>" for finding in _findings(found) or ["Nothing."])
    write_text(path, PAGE.format(name=escape(name), figures=figures, findings=findings, plots=plots))


def _key_figures(found: Statistics) -> dict[str, str]:
    numbers = {
        "incidents": found.incidents,
        "rows dropped": found.rows - found.incidents,
        "subcategories": found.subcategories,
        f"of these with fewer than {FEW} incidents": found.small_subcategories,
        "incidents in classes merged or dropped": found.merged,
        "incidents linked as duplicates": found.duplicates,
        "incidents that share a text": found.equal_texts,
        "incidents with any near-duplicate": found.near_duplicates,
        "incidents in the largest group of these": found.largest_group,
    }
    pairs = "mined by a model" if found.train_pairs is None else f"{found.train_pairs:,}"
    return {key: f"{number:,}" for key, number in numbers.items()} | {"training pairs": pairs}


def _findings(found: Statistics) -> list[str]:
    """What needs attention, each with the next step."""
    dropped, group = 1 - found.incidents / found.rows, found.largest_group / found.incidents
    category, size = next(iter(found.categories.items()))
    reached = found.ceilings.items()
    tied = ", ".join(f"{metric} to {ceiling:.2f}" for metric, ceiling in reached if ceiling < TARGET)
    noisy = {metric: found.noise_ceilings.get(metric, 1.0) for metric, ceiling in reached if ceiling >= TARGET}
    held = ", ".join(f"{metric} to {ceiling:.2f}" for metric, ceiling in noisy.items() if ceiling < TARGET)
    findings = {
        f"{dropped:.0%} of the rows lack text or category and were dropped: check that the study file names the right "
        "columns under incidents.": dropped > 0.05,
        f"{found.small_subcategories:,} of {found.subcategories:,} subcategories have fewer than {FEW} incidents, too "
        "few to learn: set labels.small_classes to merge.": found.small_subcategories > found.subcategories / 2,
        f"The category {category} holds {size / found.incidents:.0%} of the incidents and says little about them: "
        "name a finer column as category.": size > found.incidents / 2,
        f"{group:.0%} of the incidents are one group, linked or nearly equal, that no split may divide: look for wrong "
        "links and for boilerplate.": group > 0.05,
        f"Ties between the labels hold {tied} at most: raise pairs.positive_share, or lower the target "
        f"of {TARGET}.": tied != "",
        f"Label noise holds {held} at most: correct the linked duplicates whose labels differ, or lower the target of "
        f"{TARGET}.": held != "",
    } | {
        f"Linked duplicates agree in {label} in only {share:.0%} of the cases: correct the links or the labels before "
        "you train.": share < 0.6
        for label, share in found.agreement.items()
    }
    return [sentence for sentence, holds in findings.items() if holds]


def _plots(found: Statistics) -> list[tuple[str, str, Figure]]:
    """Title, note and figure of each that has data."""
    categories, others = dict(list(found.categories.items())[:LARGEST]), list(found.categories.values())[LARGEST:]
    grades = {f"grade {grade:g}": pairs for grade, pairs in found.held_out_grades.items()}
    kinds = dict(sorted(found.changed.items(), key=lambda item: -item[1]))
    noise = f"; noise is judged by {found.repeated:,} pairs of linked duplicates" if found.noise_ceilings else ""
    rest = {f"{len(others):,} others": sum(others)} if others else {}
    plots = [
        ("Categories", "Incidents of each.", _bars(categories | rest)),
        ("Subcategories", f"Incidents by rank; below the line are fewer than {FEW}.", _ranks(found.subcategory_sizes)),
        ("Splits", "Incidents in each.", _bars(found.splits)),
        ("Words per text", "Texts by length; the last bar holds all longer ones.", _histogram(found.word_counts)),
        ("Held-out pairs", "How alike their two incidents are labelled.", _bars(grades)),
        ("Stripped or masked", "How often each kind was found in a text.", _bars(kinds)),
        ("Agreement of linked duplicates", "Links whose two labels are the same.", _bars(found.agreement, form=".0%")),
        (
            "Ceilings",
            f"The most that labels allow{noise}.",
            _ceilings(found),
        ),
    ]
    return [plot for plot in plots if plot[2]["data"]]


def _figure(traces: list[Figure], height: float, x: Figure, y: Figure, **layout: Any) -> Figure:
    """Without the traces that have no data."""
    size = {"height": height, "margin": {"l": 8, "r": 16, "t": 8, "b": 8}, "font": {"family": "system-ui", "size": 13}}
    axes = {"xaxis": AXIS | x, "yaxis": AXIS | y}
    return {"data": [trace for trace in traces if trace["x"]], "layout": PLAIN | size | axes | layout}


def _bars(*series: Mapping[Any, float], form: str = ",", **layout: Any) -> Figure:
    """Lying, at numbers instead of names: two names may be cut to one label."""
    numbers = {name: number for number, name in enumerate(series[0])}
    traces = [
        {"type": "bar", "orientation": "h", "marker": {"color": colour}, "hoverinfo": "text", "textposition": "auto"}
        | {"x": list(values.values()), "y": [numbers[name] for name in values]}
        | {"text": [f"{value:{form}}" for value in values.values()]}
        | {"hovertext": [f"{_lines(name)}: {value:{form}}" for name, value in values.items()]}
        for values, colour in zip(series, COLOURS, strict=False)
    ]
    x_axis = {"range": [0, max([1, *series[0].values()])], "visible": False}
    y_axis = {"autorange": "reversed", "showgrid": False, "zeroline": False, "ticklabelstandoff": 4}
    labels = {"tickvals": list(numbers.values()), "ticktext": [_label(name) for name in numbers]}
    return _figure(traces, 30 + 26 * len(numbers), x_axis, y_axis | labels, **layout)


def _label(name: str) -> str:
    """Plotly reads tags and entities in it."""
    whole = " ".join(name.split())
    return escape(whole if len(whole) <= WIDEST else f"{whole[: WIDEST - 1]}…", quote=False)


def _lines(name: str) -> str:
    return "<br>".join(escape(line, quote=False) for line in wrap(name, 40))


def _ranks(sizes: list[int]) -> Figure:
    ranks = {"type": "scatter", "x": list(range(1, len(sizes) + 1)), "y": sizes, "mode": "lines+markers"}
    few = DASHES | {"xref": "paper", "x0": 0, "x1": 1, "y0": FEW, "y1": FEW}
    log = {"type": "log", "tickvals": [first * 10**power for power in range(8) for first in (1, 3)], "tickformat": "~s"}
    x_axis, y_axis = (log | {"title": {"text": title}} for title in ("rank", "incidents"))
    return _figure([ranks | {"line": {"color": COLOURS[0]}}], 320, x_axis, y_axis, shapes=[few])


def _histogram(counts: dict[int, int]) -> Figure:
    edges = sorted(counts)
    widths = [high - low for low, high in pairwise(edges)]
    widths += widths[-1:] or [1]  # of the last bar, which holds all longer texts
    bars = {"type": "bar", "x": edges, "y": [counts[edge] for edge in edges], "width": widths, "offset": 0}
    x_axis, y_axis = ({"title": {"text": title}} for title in ("words", "texts"))
    return _figure([bars | {"marker": {"color": COLOURS[0]}}], 320, x_axis, y_axis)


def _ceilings(found: Statistics) -> Figure:
    target = DASHES | {"yref": "paper", "x0": TARGET, "x1": TARGET, "y0": 0, "y1": 1}
    lines = [target | {"name": f"target {TARGET}", "showlegend": True}]
    figure = _bars(found.ceilings, found.noise_ceilings, form=".2f", shapes=lines, showlegend=True)
    for trace, name in zip(figure["data"], ("with ties", "with noise, too"), strict=False):
        trace |= {"name": name, "insidetextanchor": "start"}
    figure["layout"] |= {"height": 90 + 125 * len(figure["data"]), "legend": {"orientation": "h", "y": -0.05}}
    return figure
