"""A ticket export as arrays: its texts cleaned and masked, its labels numbered, what belongs together grouped."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from objectives.cleaning import clean
from objectives.cleaning import make_masker
from objectives.config import Columns
from objectives.config import Incidents
from objectives.near_duplicates import near_duplicate_links
from objectives.near_duplicates import normalise
from objectives.reading import DataError
from objectives.reading import in_words
from objectives.reading import read_rows

IntArray = NDArray[np.int64]
UNKNOWN = -1


@dataclass(frozen=True)
class IncidentTable:
    """Incidents that have text and category, in file order. Class numbers are UNKNOWN where the field is empty."""

    ids: list[str]
    texts: list[str]
    category: IntArray
    category_names: list[str]  # by number
    subcategory: IntArray  # numbers (category, subcategory) together; of the category alone if no column is mapped
    configuration_item: IntArray  # numbers (category, subcategory, item) together
    text_number: IntArray  # equal where the normalised texts are
    cluster: IntArray  # connected by duplicate links
    group: IntArray  # connected by duplicate links, equal or nearly equal texts: never split
    opened: NDArray[np.float64] | None  # seconds since 1970; None where no column is mapped
    dropped: int  # rows without text or category
    changed: dict[str, int]  # how often which kind of thing was stripped from a text or masked in it

    def __len__(self) -> int:
        return len(self.ids)


def file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_incidents(config: Incidents) -> IncidentTable:
    """Raises DataError for an unreadable or malformed file, a missing column, or other bytes than `sha256` names."""
    path = Path(config.path)
    sha256 = file_sha256(path)
    if config.sha256 not in (None, sha256):
        raise DataError(f"{path}: SHA-256 is {sha256[:12]}…, the study was created with {str(config.sha256)[:12]}…")
    rows = list(_rows(path, config))
    changed = _clean(rows)
    kept = [row for row in rows if row["text"] and row["category"]]
    if not kept:
        raise DataError(f"{path}: none of {len(rows)} rows has both text and a category")
    return _table(kept, config.columns, dropped=len(rows) - len(kept), changed=dict(changed))


def _clean(rows: list[dict[str, str]]) -> Counter[str]:
    """What was stripped from the texts or masked in them, and how often."""
    mask = make_masker(name for row in rows for name in row["persons"].split("\n") if name)
    counts = Counter[str]()
    for row in rows:
        text, stripped = clean(row["text"])
        row["text"], masked = mask(text)
        counts.update(stripped)
        counts.update(masked)
    return counts


def _rows(path: Path, config: Incidents) -> Iterator[dict[str, str]]:
    """One dict per incident: id, text, category, subcategory, configuration_item, duplicate_of, opened."""
    seen: set[str] = set()
    rows = read_rows(path, config.encoding)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    _check_header(path, header, config.columns)
    for line, fields in rows:
        row = _pick(dict(zip(header, fields, strict=True)), config.columns)
        _check_date(path, line, row["opened"], config.columns.opened_format)
        if not row["id"] or row["id"] in seen:
            raise DataError(f"{path}:{line}: id {row['id']!r} is {'not unique' if row['id'] else 'empty'}")
        seen.add(row["id"])
        yield row


def _check_header(path: Path, header: list[str], columns: Columns) -> None:
    optional = [columns.subcategory, columns.configuration_item, columns.duplicate_of, columns.opened]
    wanted = [columns.id, *columns.text, columns.category, *columns.persons, *optional]
    if twice := sorted({name for name in wanted if name is not None and header.count(name) > 1}):
        raise DataError(f"{path}:1: two columns are named {', '.join(map(repr, twice))}; rename one")
    missing = [name for name in wanted if name is not None and name not in header]
    if missing:
        raise DataError(
            f"{path}:1: no column {', '.join(map(repr, missing))}; {in_words(header)}. "
            "Map the names under incidents.columns"
        )


def _pick(fields: dict[str, str], columns: Columns) -> dict[str, str]:
    return {
        "id": fields[columns.id].strip(),
        "text": " ".join(fields[name].strip() for name in columns.text).strip(),
        "category": fields[columns.category].strip(),
        "subcategory": fields[columns.subcategory].strip() if columns.subcategory else "",
        "configuration_item": fields[columns.configuration_item].strip() if columns.configuration_item else "",
        "duplicate_of": fields[columns.duplicate_of].strip() if columns.duplicate_of else "",
        "opened": fields[columns.opened].strip() if columns.opened else "",
        "persons": "\n".join(fields[name].strip() for name in columns.persons),
    }


def _check_date(path: Path, line: int, text: str, form: str | None) -> None:
    try:
        _seconds(text, form)
    except ValueError:
        expected = f"a date as {form!r}" if form else "an ISO 8601 date; name its form in columns.opened_format"
        raise DataError(f"{path}:{line}: found {text!r}, expected {expected}") from None


def _seconds(text: str, form: str | None) -> float:
    """Since 1970; an incident without a date is older than any. Without a zone, UTC. Raises ValueError."""
    if not text:
        return -math.inf
    date = datetime.strptime(text, form) if form else datetime.fromisoformat(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _table(rows: list[dict[str, str]], columns: Columns, *, dropped: int, changed: dict[str, int]) -> IncidentTable:
    ids = [row["id"] for row in rows]
    number_of = {incident: i for i, incident in enumerate(ids)}
    links = [(i, number_of[row["duplicate_of"]]) for i, row in enumerate(rows) if row["duplicate_of"] in number_of]
    text_number = _numbers([normalise(row["text"]) for row in rows])
    near: list[tuple[int, int]] = near_duplicate_links([row["text"] for row in rows]).tolist()
    if columns.subcategory:
        subcategories = [(row["category"], row["subcategory"]) if row["subcategory"] else None for row in rows]
    else:
        subcategories = [(row["category"], "") for row in rows]
    items = [
        (*known, row["configuration_item"]) if known and row["configuration_item"] else None
        for known, row in zip(subcategories, rows, strict=True)
    ]
    opened = np.array([_seconds(row["opened"], columns.opened_format) for row in rows]) if columns.opened else None
    return IncidentTable(
        ids=ids,
        texts=[row["text"] for row in rows],
        category=_numbers([row["category"] for row in rows]),
        category_names=list(dict.fromkeys(row["category"] for row in rows)),
        subcategory=_numbers(subcategories),
        configuration_item=_numbers(items),
        text_number=text_number,
        cluster=_components(links, len(rows)),
        group=_components(links + near, len(rows)),
        opened=opened,
        dropped=dropped,
        changed=changed,
    )


def _numbers(values: Sequence[str | tuple[str, ...] | None]) -> IntArray:
    """Class numbers in order of first appearance; None is UNKNOWN."""
    number_of: dict[object, int] = {None: UNKNOWN}
    for value in values:
        number_of.setdefault(value, len(number_of) - 1)
    return np.array([number_of[value] for value in values], dtype=np.int64)


def _components(links: list[tuple[int, int]], size: int) -> IntArray:
    ends = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(size, size))
    components: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    return components
