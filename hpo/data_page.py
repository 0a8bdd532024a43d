"""`hpo check-data -o page.html`: what an export holds, as one page of plots that needs no network."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from pathlib import Path

from hpo.files import write_text
from hpo.page import COLOURS, DASHES, Figure, bars, figure, page, plot_section
from objectives.statistics import FEW, Statistics

LARGEST = 30  # categories that have a bar of their own
TARGET = 0.8  # of a study file that names none
STYLE = """td + td { padding-left: 24px; text-align: right; white-space: nowrap; }
div.parts { columns: 2 440px; column-gap: 40px; }
"""


def write_data_page(path: Path, name: str, found: Statistics) -> None:
    """Raises InputError where it cannot be written."""
    plots = "".join(
        plot_section(f"plot{number}", title, note, drawn, is_first=not number)
        for number, (title, note, drawn) in enumerate(_plots(found))
    )
    figures = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in _key_figures(found).items())
    findings = "".join(f"<li>{escape(finding)}</li>" for finding in _findings(found) or ["Nothing."])
    heading = f"<section><h2>Key figures</h2><table>{figures}</table></section>"
    heading += f"<section><h2>What needs attention</h2><ul>{findings}</ul></section>"
    write_text(path, page(name, f'<div class="parts">{heading}</div><div class="parts">{plots}</div>', STYLE))


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
        ("Categories", "Incidents of each.", bars(categories | rest)),
        ("Subcategories", f"Incidents by rank; below the line are fewer than {FEW}.", _ranks(found.subcategory_sizes)),
        ("Splits", "Incidents in each.", bars(found.splits)),
        ("Words per text", "Texts by length; the last bar holds all longer ones.", _histogram(found.word_counts)),
        ("Held-out pairs", "How alike their two incidents are labelled.", bars(grades)),
        ("Stripped or masked", "How often each kind was found in a text.", bars(kinds)),
        ("Agreement of linked duplicates", "Links whose two labels are the same.", bars(found.agreement, form=".0%")),
        (
            "Ceilings",
            f"The most that labels allow{noise}.",
            _ceilings(found),
        ),
    ]
    return [plot for plot in plots if plot[2]["data"]]


def _ranks(sizes: list[int]) -> Figure:
    ranks = {"type": "scatter", "x": list(range(1, len(sizes) + 1)), "y": sizes, "mode": "lines+markers"}
    few = DASHES | {"xref": "paper", "x0": 0, "x1": 1, "y0": FEW, "y1": FEW}
    log = {"type": "log", "tickvals": [first * 10**power for power in range(8) for first in (1, 3)], "tickformat": "~s"}
    x_axis, y_axis = (log | {"title": {"text": title}} for title in ("rank", "incidents"))
    return figure([ranks | {"line": {"color": COLOURS[0]}}], 320, x_axis, y_axis, shapes=[few])


def _histogram(counts: dict[int, int]) -> Figure:
    edges = sorted(counts)
    widths = [high - low for low, high in pairwise(edges)]
    widths += widths[-1:] or [1]  # of the last bar, which holds all longer texts
    texts = {"type": "bar", "x": edges, "y": [counts[edge] for edge in edges], "width": widths, "offset": 0}
    x_axis, y_axis = ({"title": {"text": title}} for title in ("words", "texts"))
    return figure([texts | {"marker": {"color": COLOURS[0]}}], 320, x_axis, y_axis)


def _ceilings(found: Statistics) -> Figure:
    target = DASHES | {"yref": "paper", "x0": TARGET, "x1": TARGET, "y0": 0, "y1": 1}
    marks = [target | {"name": f"target {TARGET}", "showlegend": True}]
    drawn = bars(found.ceilings, found.noise_ceilings, form=".2f", shapes=marks, showlegend=True)
    for trace, name in zip(drawn["data"], ("with ties", "with noise, too"), strict=False):
        trace |= {"name": name, "insidetextanchor": "start"}
    drawn["layout"] |= {"height": 90 + 125 * len(drawn["data"]), "legend": {"orientation": "h", "y": -0.05}}
    return drawn
