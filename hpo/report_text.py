"""Sections as Markdown, and as a terminal shows them. Right at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpo.cells import clean
from hpo.report_page import Section, are_numbers

SHORT = 20  # characters of a cell that is never broken


def markdown(title: str, sections: Sequence[Section]) -> str:
    return "\n".join([f"# {_plain(title)}", "", *(line for section in sections for line in _markdown(section))])


def _markdown(section: Section) -> Iterator[str]:
    yield f"## {section.title}\n"
    for paragraph in section.paragraphs:
        yield f"{_plain(paragraph)}\n"
    if section.table and section.table[1]:
        heading, rows = section.table
        yield _line(heading)
        yield _line(["---:" if are_numbers(column) else "---" for column in zip(*rows, strict=True)])
        yield from map(_line, rows)
        yield ""
    if section.items:
        yield from (f"- {_plain(item)}" for item in section.items)
        yield ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(text: str) -> str:
    """Nothing in a name is taken for markup."""
    return "".join(f"\\{character}" if character in "\\`*_<>[]#" else character for character in text)


def print_sections(console: Console, title: str, sections: Sequence[Section]) -> None:
    console.print(Text(title, style="bold"))
    for section in sections:
        console.print()
        console.print(Text(section.title, style="bold"))
        for paragraph in section.paragraphs:
            console.print(paragraph)
        if section.table and section.table[1]:
            console.print(_table(*section.table), "")
        for item in section.items:
            console.print(Padding(Text(clean(item)), (0, 0, 0, 2)) if len(section.items) == 1 else _bullet(item))


def _bullet(item: str) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text("•"), Text(clean(item)))
    return grid


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True, show_edge=False)
    for name, column in zip(heading, zip(*rows, strict=True), strict=True):
        is_number, is_short = are_numbers(column), max(map(len, column)) <= SHORT
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_short or is_number, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, map(clean, row)))
    return table
