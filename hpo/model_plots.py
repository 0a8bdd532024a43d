"""What the best model does with held-out pairs, from what objectives/diagnosis.py recorded with its trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpo.page import COLOURS, DASHES, Figure, with_legend

BY_GRADE = ("#8a8a8a", "#2e9d8a", "#3a7fc0", "#9a5fc0", "#c0651a")  # from 0 upwards
SHARE = {"range": [0, 1.03], "tickformat": ".1f", "ticklabelstandoff": 4}


def precision_recall(points: Sequence[Sequence[float]], threshold: float | None) -> Figure:
    """Points: recall, precision, threshold."""
    curve = _line("at other thresholds", [p[0] for p in points], [p[1] for p in points], COLOURS[0])
    curve |= {"hovertext": [f"from {p[2]:.3f} on: recall {p[0]:.2f}, precision {p[1]:.2f}" for p in points]}
    frozen = [p for p in points if threshold is not None and abs(p[2] - threshold) < 1e-4][:1]
    said = "".join(f"threshold {p[2]:.3f}: precision {p[1]:.2f}, recall {p[0]:.2f}" for p in frozen)
    mark = _line(said, [p[0] for p in frozen], [p[1] for p in frozen], COLOURS[1])
    mark |= {"mode": "markers", "marker": {"size": 12, "symbol": "diamond", "color": COLOURS[1]}, "hovertext": said}
    x_axis, y_axis = ({"title": {"text": title}} | SHARE for title in ("recall", "precision"))
    return with_legend([curve, mark], 360, x_axis, y_axis, showlegend=True)


def similarities(found: dict[str, Any], threshold: float | None) -> Figure:
    """Steps, each grade's in shares of its own pairs: there are far more of those that are not alike."""
    low, high = found.get("edges", (0.0, 1.0))
    traces = []
    for (grade, counts), colour in zip(found.get("counts", {}).items(), BY_GRADE, strict=False):
        width, pairs = (high - low) / len(counts), sum(counts)
        x = [round(low + i * width, 4) for i in range(len(counts) + 1)]
        shares = [round(count / pairs, 4) for count in [*counts, counts[-1]]]
        name = f"grade {grade}: {pairs:,} pairs"
        traces.append(_line(name, x, shares, colour) | {"line": {"shape": "hv", "color": colour, "width": 2}})
    across = DASHES | {"yref": "paper", "y0": 0, "y1": 1, "x0": threshold, "x1": threshold, "showlegend": True}
    marks = [across | {"name": f"threshold {threshold:.3f}"}] if threshold is not None else []
    x_axis = {"title": {"text": "cosine"}, "tickformat": ".2~f"}
    y_axis = {"title": {"text": "share"}, "tickformat": ".0%"}
    return with_legend(traces, 360, x_axis, y_axis, shapes=marks, showlegend=True)


def calibration(points: Sequence[Sequence[float]], *, is_probability: bool) -> Figure:
    """Points: mean prediction, share of matches, pairs. A probability should lie on the diagonal; a cosine is none."""
    said = "probability" if is_probability else "cosine"
    curve = _line("pairs, a tenth each", [p[0] for p in points], [p[1] for p in points], COLOURS[0])
    curve |= {"mode": "lines+markers"}
    curve |= {"hovertext": [f"{said} {p[0]:.2f}: {p[1]:.0%} of {p[2]:,.0f} pairs are matches" for p in points]}
    ends = [0, 1] if is_probability and points else []
    ideal = _line("as it should be", ends, ends, "#888")
    ideal |= {"line": {"dash": "dash", "color": "#888"}, "hoverinfo": "skip"}
    x_axis = {"title": {"text": f"mean {said}"}, "tickformat": ".2~f"}
    y_axis = {"title": {"text": "share of matches"}, "tickformat": ".0%", "rangemode": "tozero"}
    return with_legend([ideal, curve], 360, x_axis, y_axis, showlegend=True)


def _line(name: str, x: Sequence[float], y: Sequence[float], colour: str) -> Figure:
    look = {"type": "scatter", "mode": "lines", "name": name, "line": {"color": colour, "width": 2.5}}
    return look | {"x": [*x], "y": [*y], "hoverinfo": "text"}
