"""What a trained model is for: is one incident a match of another, and which incidents of an export are alike?"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size

from hpo.cells import clean as printable
from hpo.datasets import cache_folder
from hpo.display import make_console
from hpo.errors import InputError, SetupError
from hpo.model_folder import read_facts
from hpo.study_file import whole_incidents
from objectives.cache import cached
from objectives.cleaning import clean, make_masker
from objectives.config import HEAD_FOLDER, Incidents
from objectives.exports import read_export
from objectives.incidents import cache_key
from objectives.model_files import pin

CHUNK = 2_000  # texts between two looks at the clock
SAY_EVERY_S = 5.0
INDEX = 1  # to be raised when what is kept of an export changes
Found = dict[str, Any]


def match(folder: Path, first: str, second: str, *, same_item: bool, as_json: bool) -> None:
    """Raises InputError, ModelError, SetupError."""
    facts, texts = read_facts(folder), [_as_read(first), _as_read(second)]
    vectors = _encode(_load(folder), texts)
    found: Found = {"similarity": float(vectors[0] @ vectors[1]), "probability": None, "threshold": facts.threshold}
    if facts.head:
        from objectives.match_head import load_head

        head, items = load_head(folder / HEAD_FOLDER), np.array([float(same_item)])
        found["probability"] = float(head.probabilities(texts, vectors, np.array([0]), np.array([1]), items)[0])
        found["threshold"] = head.threshold
    found["match"] = found["probability" if facts.head else "similarity"] >= found["threshold"]
    print(json.dumps(found) if as_json else "\n".join(_in_words(found)))


def similar(folder: Path, path: Path, query: str, top: int, *, as_json: bool) -> None:
    """Raises InputError, DataError, ModelError, SetupError."""
    facts = read_facts(folder)
    if query == "-" and sys.stdin is None:
        raise InputError("--query - reads standard input, which is closed")
    text = _as_read(sys.stdin.buffer.read().decode(errors="replace") if query == "-" else query)
    here = facts.incidents.model_copy(update={"path": str(path), "sha256": None, "dataset": None})
    incidents, model = _without_links(whole_incidents(here, Path())), _load(folder)
    key = [INDEX, pin(str(folder.absolute())), cache_key(incidents)]
    index = _table(cached(cache_folder(), "index", key, lambda: _make_index(model, incidents)))
    vectors = index["vector"].combine_chunks().flatten().to_numpy().reshape(len(index), -1)
    similarities = vectors @ _encode(model, [text])[0]
    nearest = np.argsort(-similarities, kind="stable")[:top]
    found = index.drop_columns("vector").take(nearest).append_column("similarity", pa.array(similarities[nearest]))
    if as_json:
        print(json.dumps(found.to_pylist()))
    else:
        _print_rows(found.to_pylist())


def _without_links(incidents: Incidents) -> Incidents:
    """Of an export to be searched nothing is asked that is not shown."""
    unused = dict.fromkeys(("configuration_item", "assignment_group", "duplicate_of", "parent", "opened"))
    return incidents.model_copy(update={"columns": incidents.columns.model_copy(update=unused)})


def _as_read(text: str) -> str:
    """As incidents are, but for persons, whom only an export names."""
    text = make_masker(())(clean(text)[0])[0]
    if not text:
        raise InputError("a text is empty, or nothing of it is left without its markup; give a text with words")
    return text


def _load(folder: Path) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    pin(str(folder.absolute()))  # says so where there is no model, before anything heavy is loaded

    from objectives.ensemble import load_model

    try:
        return load_model(folder)
    except Exception as error:  # each kind of model has its own
        reason = str(error).strip().partition("\n")[0]
        raise SetupError(f"{folder}: the model cannot be loaded ({reason}); train it again") from None


def _encode(model: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    from objectives.ensemble import unit_vectors

    said, parts = time.monotonic(), []
    for start in range(0, len(texts), CHUNK):
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            print(f"{start:,} of {len(texts):,} incidents encoded", file=sys.stderr)
        parts.append(unit_vectors(model, texts[start : start + CHUNK]))
    return np.concatenate(parts)


def _make_index(model: Any, incidents: Incidents) -> bytes:
    """What is shown of each incident and its vector, as Arrow's file format has it."""
    export = read_export(incidents)
    rows = export.rows.combine_chunks()
    category = pa.DictionaryArray.from_arrays(rows["category"].chunk(0).indices, export.category_names)
    vectors = _encode(model, rows["text"].to_pylist())
    columns = {
        "id": rows["id"],
        "category": category.cast(pa.string()),
        "subcategory": rows["subcategory"].cast(pa.string()),
        "text": rows["text"],
        "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
    }
    index, sink = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, index.schema) as writer:
        writer.write_table(index)
    return bytes(sink.getvalue())


def _table(content: bytes) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(content)).read_all()


def _in_words(found: Found) -> list[str]:
    by = "similarity" if found["probability"] is None else "probability"
    verdict = f"{'match':<12} {'yes' if found['match'] else 'no'}, from {by} {found['threshold']:.3f} on"
    return [*(f"{name:<12} {found[name]:.3f}" for name in dict.fromkeys(["similarity", by])), verdict]


def _print_rows(rows: list[Found]) -> None:
    """A line for each, cut at the terminal's edge."""
    console = make_console()
    lines = [(f"{row['similarity']:.3f}", row["id"], _label(row), row["text"]) for row in rows]
    cells = [[_plain(cell) for cell in line] for line in lines]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)][:-1]
    for rank, (*first, text) in enumerate(cells, 1):
        padded = [set_cell_size(cell, width) for cell, width in zip(first, widths, strict=True)]
        line = "  ".join([f"{rank:>{len(str(len(rows)))}}", *padded, text])
        console.print(line, no_wrap=True, overflow="ellipsis")


def _label(row: Found) -> str:
    return " / ".join(filter(None, (row["category"], row["subcategory"])))


def _plain(text: str) -> str:
    """In one line, and nothing that a terminal would act on."""
    return printable(" ".join(text.split()))
