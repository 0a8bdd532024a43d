"""A ticket export as columns: its texts cleaned and masked, read in a stream, so memory holds only what is kept."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from objectives.cleaning import clean, make_masker
from objectives.config import Columns, Incidents
from objectives.reading import BATCH_ROWS, DataError, at_hand, in_words, read_rows

CLASSES = ("category", "subcategory", "configuration_item", "assignment_group")
LINKS = ("duplicate_of", "parent")
LONGEST_DATE = 32
Fields = dict[str, Any]  # text all but `opened`


@dataclass(frozen=True)
class Export:
    """rows: id, text, opened (seconds since 1970), CLASSES and LINKS (null where empty), in file order."""

    rows: pa.Table
    category_names: list[str]  # by number, masked
    dropped: int  # rows without text or category
    changed: dict[str, int]  # how often which kind of thing was stripped from a text or masked in it


def read_export(config: Incidents) -> Export:
    """Raises DataError for an unreadable or malformed file or a missing column."""
    try:
        return _read(config)
    except DataError as error:  # of a URL's copy, whose name tells nobody anything
        raise DataError(str(error).replace(str(at_hand(config.path)), config.path)) from None


def _read(config: Incidents) -> Export:
    mask = make_masker({name for persons in _persons(config) for name in persons.split("\n") if name})
    changed, hashes, batches = Counter[str](), array("q"), []
    rows = _rows(config)
    while batch := [fields for _, fields in islice(rows, BATCH_ROWS)]:
        hashes.extend(hash(fields["id"]) for fields in batch)
        for fields in batch:
            text, stripped = clean(fields["text"])
            fields["text"], masked = mask(text)
            changed.update(stripped)
            changed.update(masked)
        batches.append(_columns([fields for fields in batch if fields["text"] and fields["category"]]))
    _check_unique(config, np.frombuffer(hashes, dtype=np.int64))
    kept = pa.Table.from_batches(batches).unify_dictionaries() if batches else None
    if not kept:
        raise DataError(f"{config.path}: none of {len(hashes)} rows has both text and a category")
    names = [mask(name)[0] for name in kept["category"].chunk(0).dictionary.to_pylist()]
    return Export(kept, names, len(hashes) - len(kept), dict(changed))


def _persons(config: Incidents) -> Iterator[str]:
    """They are known before any text is masked: the file is read twice."""
    if config.columns.persons:
        yield from (fields["persons"] for _, fields in _rows(config))


def _columns(rows: list[Fields]) -> pa.RecordBatch:
    def column(name: str) -> Any:
        return pa.array([fields[name] or None for fields in rows], pa.string())

    opened = pa.array([fields["opened"] for fields in rows], pa.float64())
    classes = {name: column(name).dictionary_encode() for name in CLASSES}
    return pa.record_batch({name: column(name) for name in ("id", "text", *LINKS)} | classes | {"opened": opened})


def _rows(config: Incidents) -> Iterator[tuple[int, Fields]]:
    """Line, and the fields that count, by what they are for. Checked but for the uniqueness of ids."""
    path = at_hand(config.path)
    rows = read_rows(path, config.encoding)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    _check_header(path, header, config.columns)
    for line, values in rows:
        fields = _pick(_by_name(header, values), config.columns)
        fields["opened"] = _opened(path, line, fields["opened"], config.columns.opened_format)
        if not fields["id"]:
            raise DataError(f"{path}:{line}: id '' is empty")
        yield line, fields


def _by_name(header: list[str], values: list[str]) -> Fields:
    """Of several columns of one name, the first that holds something."""
    named = dict.fromkeys(header, "")
    for name, value in zip(header, values, strict=True):
        named[name] = named[name] or value
    return named


def _check_unique(config: Incidents, hashes: np.ndarray[Any, Any]) -> None:
    """Ten million ids do not fit beside their texts; their hashes do, and the file tells whether they lie."""
    ordered = np.sort(hashes)
    suspects, seen = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist()), set[str]()
    for line, fields in _rows(config) if suspects else ():
        if hash(fields["id"]) in suspects:
            if fields["id"] in seen:
                raise DataError(f"{config.path}:{line}: id {fields['id']!r} is not unique")
            seen.add(fields["id"])


def _check_header(path: Path, header: list[str], columns: Columns) -> None:
    optional = [getattr(columns, name) for name in (*CLASSES, *LINKS, "opened")]
    wanted = [columns.id, *columns.text, *columns.persons, *(name for name in optional if name is not None)]
    if twice := sorted({name for name in wanted if header.count(name) > 1 and not columns.may_repeat}):
        raise DataError(f"{path}:1: two columns are named {', '.join(map(repr, twice))}; rename one")
    if missing := [name for name in wanted if name not in header]:
        raise DataError(
            f"{path}:1: no column {', '.join(map(repr, missing))}; {in_words(header)}. "
            "Map the names under incidents.columns"
        )


def _pick(fields: Fields, columns: Columns) -> Fields:
    picked = {
        "id": fields[columns.id].strip(),
        "text": " ".join(fields[name].strip() for name in columns.text).strip(),
        "persons": "\n".join(fields[name].strip() for name in columns.persons),
    }
    for use in (*CLASSES, *LINKS, "opened"):
        name = getattr(columns, use)
        picked[use] = fields[name].strip() if name else ""
    return picked


def _opened(path: Path, line: int, text: str, form: str | None) -> float:
    """Seconds since 1970; an incident without a date is older than any."""
    try:
        return _seconds(text, form) if text else -math.inf
    except (ValueError, OverflowError, re.error):  # the last for a form that names a part twice
        text = text if len(text) <= LONGEST_DATE else f"{len(text)} characters"  # of a ticket, it seems
        expected = f"a date as {form!r}" if form else "an ISO 8601 date; name its form in columns.opened_format"
        raise DataError(f"{path}:{line}: found {text!r}, expected {expected}") from None


def _seconds(text: str, form: str | None) -> float:
    """Since 1970, without a zone in UTC; ISO 8601 is understood whatever form is declared."""
    try:
        date = datetime.strptime(text, form) if form else datetime.fromisoformat(text)
    except ValueError:
        date = datetime.fromisoformat(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
