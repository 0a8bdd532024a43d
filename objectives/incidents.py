"""Incidents as arrays: texts, labels as numbers, and what belongs together grouped. Also as bytes that travel."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from objectives.cache import cached
from objectives.config import Columns, Incidents
from objectives.exports import LINKS, Export, read_export
from objectives.reading import DataError, at_hand

IntArray = NDArray[np.int64]
UNKNOWN = -1
TEXTS = ("ids", "texts")
READER = 2  # to be raised when reading, cleaning or grouping changes: what boxes have kept is then read anew


@dataclass(frozen=True)
class IncidentTable:
    """Incidents that have text and category, in file order. Class numbers are UNKNOWN where the field is empty."""

    ids: list[str]
    texts: list[str]
    category: IntArray
    category_names: list[str]  # by number
    subcategory: IntArray  # numbers (category, subcategory) together; of the category alone if no column is mapped
    configuration_item: IntArray  # numbers (category, subcategory, item) together
    assignment_group: IntArray  # numbers (category, subcategory, group) together
    item: IntArray  # numbers configuration items, whatever their subcategory
    text_number: IntArray  # equal where the normalised texts are
    cluster: IntArray  # connected by duplicate links or a common parent
    group: IntArray  # connected by duplicate links, equal or nearly equal texts: never split
    opened: NDArray[np.float64] | None  # seconds since 1970; None where no column is mapped
    dropped: int  # rows without text or category
    changed: dict[str, int]  # how often which kind of thing was stripped from a text or masked in it

    def __len__(self) -> int:
        return len(self.ids)


def file_sha256(path: Path) -> str:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"{path}: neither a file nor a link to one")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def load_incidents(config: Incidents, cache: Path | None = None) -> IncidentTable:
    """As the box has kept them, else from the export. Raises DataError."""
    return from_parquet(kept_incidents(config, cache))


def kept_incidents(config: Incidents, cache: Path | None) -> bytes:
    return cached(cache if config.sha256 else None, *cache_key(config), lambda: to_parquet(read_incidents(config)))


def cache_key(config: Incidents) -> tuple[str, Any]:
    """Of what was read from the export with this SHA-256, wherever it lies."""
    return "incidents", [READER, config.model_dump(mode="json", exclude={"path", "dataset"})]


def read_incidents(config: Incidents) -> IncidentTable:
    """Raises DataError for an unreadable or malformed file, a missing column, or other bytes than `sha256` names."""
    check_sha256(config)
    export = read_export(config)
    check_sha256(config)  # it did not change meanwhile
    return _table(export, config.columns)


def check_sha256(config: Incidents) -> None:
    if config.sha256 is not None and (found := file_sha256(at_hand(config.path))) != config.sha256:
        raise DataError(
            f"{config.path}: SHA-256 is {found[:12]}…, expected {config.sha256[:12]}…: the data have changed"
        )


def to_parquet(table: IncidentTable) -> bytes:
    columns = {field.name: getattr(table, field.name) for field in fields(table)}
    facts = {name: columns.pop(name) for name in ("category_names", "dropped", "changed")}
    columns = {name: values for name, values in columns.items() if values is not None}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns).replace_schema_metadata({"facts": json.dumps(facts)}), sink, compression="zstd")
    return bytes(sink.getvalue())


def from_parquet(content: bytes) -> IncidentTable:
    table = pq.read_table(pa.BufferReader(content))
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in table.column_names if name not in TEXTS}
    columns |= {name: table[name].to_pylist() for name in TEXTS} | json.loads(table.schema.metadata[b"facts"])
    return IncidentTable(**({"opened": None} | columns))


def _table(export: Export, columns: Columns) -> IncidentTable:
    from objectives.near_duplicates import near_duplicate_links, normalise  # scipy takes half a second to load

    rows = export.rows
    texts, opened = rows["text"].to_pylist(), rows["opened"].to_numpy()
    category = _numbers(rows["category"])
    subcategory = _within(category, _numbers(rows["subcategory"])) if columns.subcategory else category
    links = _links(rows)
    near = near_duplicate_links(texts)
    return IncidentTable(
        ids=rows["id"].to_pylist(),
        texts=texts,
        category=category,
        category_names=export.category_names,
        subcategory=subcategory,
        configuration_item=_within(subcategory, _numbers(rows["configuration_item"])),
        assignment_group=_within(subcategory, _numbers(rows["assignment_group"])),
        item=_numbers(rows["configuration_item"]),
        text_number=_numbers(pa.chunked_array([[normalise(text) for text in texts]], pa.large_string())),
        cluster=_components(links, len(rows)),
        group=_components(np.concatenate([links, near]), len(rows)),
        opened=opened if columns.opened else None,
        dropped=export.dropped,
        changed=export.changed,
    )


def _numbers(values: pa.ChunkedArray) -> IntArray:
    """In order of first appearance; null is UNKNOWN."""
    codes = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    indices = pa.chunked_array([chunk.indices for chunk in codes.chunks])
    numbers: IntArray = pc.fill_null(indices, UNKNOWN).to_numpy().astype(np.int64)
    return numbers


def _within(outer: IntArray, inner: IntArray) -> IntArray:
    """Numbers of both together; UNKNOWN where either is."""
    numbers = np.full(len(outer), UNKNOWN, dtype=np.int64)
    known = (outer != UNKNOWN) & (inner != UNKNOWN)
    both = outer[known] * (inner.max(initial=0) + 1) + inner[known]
    numbers[known] = np.unique(both, return_inverse=True)[1]
    return numbers


def _links(rows: pa.Table) -> IntArray:
    """(links, 2): to the incident that a field names, or to the first that names the same one."""
    number_of = {incident: number for number, incident in enumerate(rows["id"].to_pylist())}
    links = []
    for field in LINKS:
        for number, named in enumerate(rows[field].to_pylist()):
            if named is not None:
                links.append((number, number_of.setdefault(named, number)))
    return np.array(links, dtype=np.int64).reshape(-1, 2)


def _components(links: IntArray, size: int) -> IntArray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(links), dtype=np.int8), (links[:, 0], links[:, 1])), shape=(size, size))
    components: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    return components
