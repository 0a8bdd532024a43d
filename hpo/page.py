"""Pages of plots that need no network, and the look that their figures have in common."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from textwrap import wrap
from typing import Any

WIDEST = 24  # characters of a label beside a bar
COLOURS, GREY = ("#3a7fc0", "#c0651a"), "rgba(128,128,128,0.3)"  # legible on white and on black
TEXT = "#7a7a7a"  # as legible on either, where a page says nothing else
AXIS = {"gridcolor": GREY, "zerolinecolor": GREY, "fixedrange": True, "automargin": True, "tickformat": ","}
PLAIN = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "dragmode": False}
LEGEND = {"orientation": "h", "xref": "container", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"}
SMALL = {"title": {"font": {"size": 13}}}  # as the rest
DASHES = {"type": "line", "line": {"dash": "dash", "color": "#888"}}
SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 1240px; margin: 0 auto; padding: 16px; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin: 0; }}
section {{ break-inside: avoid; padding-bottom: 32px; }} ul {{ margin: 0; padding-left: 20px; }}
.note {{ margin: 0; opacity: 0.75; font-size: 0.9rem; }}
.cartesianlayer text, .infolayer text {{ fill: currentColor !important; }}
{style}</style></head><body><h1>{title}</h1>{body}</body></html>
"""

Figure = dict[str, Any]


def page(title: str, body: str, style: str) -> str:
    """body: HTML."""
    return SHELL.format(title=escape(title), body=body, style=style)


def plot_section(name: str, title: str, note: str, drawn: Figure, *, is_first: bool, heading: str = "h2") -> str:
    """A figure below its title; `name` is its id. The first one on a page brings the library."""
    from plotly.io import to_html

    form: dict[str, Any] = {"full_html": False, "validate": False}
    form["config"] = {"displayModeBar": False, "responsive": True}
    plot = to_html(drawn, include_plotlyjs=is_first, div_id=name, **form)
    return f'<section><{heading}>{escape(title)}</{heading}><p class="note">{escape(note)}</p>{plot}</section>'


def figure(traces: list[Figure], height: float, x: Figure, y: Figure, **layout: Any) -> Figure:
    """Without the traces that have no data."""
    font = {"family": "system-ui", "size": 13, "color": TEXT}
    size = {"height": height, "margin": {"l": 8, "r": 16, "t": 8, "b": 8}, "font": font}
    axes = {"xaxis": AXIS | {"automargin": "height"} | x, "yaxis": AXIS | y}
    same = {"template": {"layout": {"xaxis": SMALL, "yaxis": SMALL}}}
    return {"data": [trace for trace in traces if trace["x"]], "layout": PLAIN | size | axes | same | layout}


def with_legend(traces: list[Figure], height: float, x: Figure, y: Figure, **layout: Any) -> Figure:
    """Below it. The room beside it stays as it is: else labels and legend make room for each other without end."""
    margin = {"l": 62, "r": 16, "t": 8, "b": 8}
    return figure(traces, height, x, {"automargin": False} | y, legend=LEGEND, margin=margin, **layout)


def bars(*series: Mapping[Any, float], form: str = ",", least: float = 1, **layout: Any) -> Figure:
    """Lying, at numbers instead of names: two names may be cut to one label. `least`: of what the axis spans."""
    numbers = {name: number for number, name in enumerate(series[0])}
    traces = [
        {"type": "bar", "orientation": "h", "marker": {"color": colour}, "hoverinfo": "text", "textposition": "auto"}
        | {"x": list(values.values()), "y": [numbers[name] for name in values]}
        | {"text": [f"{value:{form}}" for value in values.values()]}
        | {"hovertext": [f"{lines(name)}: {value:{form}}" for name, value in values.items()]}
        for values, colour in zip(series, COLOURS, strict=False)
    ]
    x_axis = {"range": [0, max([least, *series[0].values()])], "visible": False}
    y_axis = {"autorange": "reversed", "showgrid": False, "zeroline": False, "ticklabelstandoff": 4}
    labels = {"tickvals": list(numbers.values()), "ticktext": [label(name) for name in numbers]}
    return figure(traces, 30 + 26 * len(numbers), x_axis, y_axis | labels, **layout)


def label(name: str, widest: int = WIDEST) -> str:
    """Plotly reads tags and entities in it."""
    whole = " ".join(name.split())
    return escape(whole if len(whole) <= widest else f"{whole[: widest - 1]}…", quote=False)


def lines(name: str, width: int = 40) -> str:
    return "<br>".join(escape(line, quote=False) for line in wrap(name, width))
