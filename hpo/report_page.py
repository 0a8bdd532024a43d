"""A report as one page that needs no network: its sections, then its plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from hpo.files import write_text
from hpo.page import page, plot_section
from hpo.report_plots import Plot

Row = tuple[str, ...]
WIDE = 32  # characters of a cell that is a sentence
NUMBER = set("0123456789.,%+-± e")
STYLE = """nav { display: flex; flex-wrap: wrap; gap: 4px 20px; padding-bottom: 24px; font-size: 0.9rem; }
section { scroll-margin-top: 16px; } h2 { margin-bottom: 4px; }
p, li { max-width: 85ch; } p { margin: 0 0 8px; } .note { margin: 0 0 4px; } li { margin-bottom: 6px; }
.wide { overflow-x: auto; margin-bottom: 8px; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 24px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid #8884; }
td { overflow-wrap: break-word; max-width: 60ch; } th { font-weight: 600; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; }
@media (max-width: 600px) {  /* a cell below the other, each after its heading */
  .told thead, .told td:empty { display: none; } .told tr, .told td { display: block; text-align: left; }
  .told tr { border-bottom: 1px solid #8884; padding: 4px 0; } .told td { border: 0; padding: 0; white-space: normal; }
  .told td + td::before { content: attr(data-of) ": "; opacity: 0.75; }
}
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 0 40px; }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr)); gap: 0 24px; }
.plots section { min-width: 0; } .small section { padding-bottom: 16px; } .small h3 { font-size: 1rem; margin: 0; }
.annotation text { paint-order: stroke; stroke: Canvas; stroke-width: 3px; }
@media print {
  :root { color-scheme: light; font-size: 12px; } nav { display: none; } .wide { overflow: visible; }
  .plots:not(.small) { display: block; }
}
"""


@dataclass(frozen=True)
class Section:
    """Paragraphs, a table (its heading and rows), a list."""

    title: str
    paragraphs: tuple[str, ...] = ()
    table: tuple[Row, tuple[Row, ...]] | None = None
    items: tuple[str, ...] = ()


def write_report_page(path: Path, title: str, sections: Sequence[Section], plots: Sequence[Plot]) -> None:
    """Raises InputError where it cannot be written."""
    links = [(f"section{number}", section.title) for number, section in enumerate(sections)]
    links += [("plots", "Plots")] if plots else []
    navigation = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name in links)
    body = "".join(_section(f"section{number}", section) for number, section in enumerate(sections))
    write_text(path, page(title, f"<nav>{navigation}</nav>{body}{_plots(plots)}", STYLE))


def _section(anchor: str, section: Section) -> str:
    paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs)
    items = "".join(f"<li>{escape(item)}</li>" for item in section.items)
    body = paragraphs + _table(section) + (f"<ul>{items}</ul>" if items else "")
    return f'<section id="{anchor}"><h2>{escape(section.title)}</h2>{body}</section>'


def _table(section: Section) -> str:
    """In a box of its own, which scrolls where it is too narrow; with sentences in it, it is stacked there."""
    if section.table is None or not section.table[1]:
        return ""
    heading, rows = section.table
    kinds = ["n" if are_numbers(column) else "t" for column in zip(*rows, strict=True)]
    told = "told" if max(len(cell) for row in rows for cell in row) > WIDE else ""
    box = f'<div class="wide" tabindex="0" role="region" aria-label="{escape(section.title)}"><table class="{told}">'
    head = "".join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in zip(heading, kinds, strict=True))
    lines = "".join(f"<tr>{_cells(row, heading, kinds)}</tr>" for row in rows)
    return f"{box}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def are_numbers(column: Sequence[str]) -> bool:
    return all({*cell.replace(" to ", "")} <= NUMBER for cell in column)


def _cells(row: Row, heading: Row, kinds: Sequence[str]) -> str:
    return "".join(
        f'<td class="{kind}" data-of="{escape(name)}">{escape(cell)}</td>'
        for cell, name, kind in zip(row, heading, kinds, strict=True)
    )


def _plots(plots: Sequence[Plot]) -> str:
    """Small ones of a group in rows, below its name."""
    found, first = "", plots[0].name if plots else ""
    for group, members in groupby(plots, lambda plot: plot.group):
        level = "h3" if group else "h2"
        drawn = "".join(
            plot_section(p.name, p.title, p.note, p.bare, is_first=p.name == first, heading=level) for p in members
        )
        heading = f"<h2>{escape(group)}</h2>" if group else ""
        found += f'{heading}<div class="plots{" small" if group else ""}">{drawn}</div>'
    return f'<div id="plots">{found}</div>' if plots else ""
