"""Words in the cells of a terminal, whatever letters it can show: fitted, packed, wrapped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

GAP = "  "


@dataclass(frozen=True)
class Glyphs:
    levels: str  # of a sketch, from low to high
    done: str
    to_do: str
    cut: str


BLOCKS = Glyphs("▁▂▃▄▅▆▇█", "━", "─", "…")
ASCII = Glyphs("_.-:=+*#", "#", "-", "~")


def glyphs_of(console: Console) -> Glyphs:
    return BLOCKS if console.encoding.startswith("utf") else ASCII


def packed(words: Sequence[str], width: int) -> list[str]:
    """As many to a line as fit."""
    lines = list[str]()
    for word in words:
        if lines and cell_len(lines[-1]) + len(GAP) + cell_len(word) <= width:
            lines[-1] += GAP + word
        else:
            lines.append(word)
    return lines


def wrapped(words: str, style: str, width: int, glyphs: Glyphs) -> list[Text]:
    """In up to three lines, as it may end with a command to be read whole."""
    lines = textwrap.wrap(clean(words), width, max_lines=3, placeholder=glyphs.cut)
    return [text_line(line, style, width, glyphs) for line in lines]


def text_line(words: str, style: str, width: int, glyphs: Glyphs) -> Text:
    return Text(fit(words, width, glyphs).rstrip(), style)


def fit(words: str, cells: int, glyphs: Glyphs, *, right: bool = False) -> str:
    """In exactly so many cells of a terminal, where a wide character takes two."""
    words = clean(words)
    if (length := cell_len(words)) > cells:
        return set_cell_size(words, cells - 1) + glyphs.cut if cells > 0 else ""
    return " " * (cells - length) + words if right else words + " " * (cells - length)


def clean(words: str) -> str:
    """Without what moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in words)
