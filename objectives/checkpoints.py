"""Checkpoints of a running trial: whole or not there, whatever happened while they were written.

Each is a folder that was written beside, hashed in a manifest, and renamed; the newest whose manifest verifies counts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

TENSORS, FACTS, MANIFEST = "tensors.safetensors", "facts.json", "manifest.json"
KEPT = 2
FULL = re.compile("MiB free|No space left|quota", re.IGNORECASE)
ROOM = 3  # free space to have before writing, in sizes of a checkpoint

Tensors = dict[str, torch.Tensor]


class CheckpointError(Exception):
    """There is no room for a checkpoint, or its folder cannot be written."""

    exit_code = 78


@dataclass(frozen=True)
class Checkpoint:
    facts: dict[str, Any]  # what JSON can say
    tensors: Tensors


def save(root: Path, position: int, checkpoint: Checkpoint) -> None:
    """`position` orders checkpoints. The earlier ones stay until this one is there. Raises CheckpointError."""
    partial, whole = root / f".partial-{os.getpid()}", root / f"{position:012d}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_room(root, checkpoint.tensors)
        _remove(partial)
        partial.mkdir()
        _write(partial, checkpoint)
        _remove(whole)
        partial.rename(whole)
        _flush(root)
    except (OSError, SafetensorError) as error:
        _remove(partial)
        raise CheckpointError(f"no checkpoint can be written to {root}: {_reason(error)}") from None
    for old in _newest_first(root)[KEPT:]:
        _remove(old)


def newest(root: Path, is_ours: Callable[[dict[str, Any]], bool]) -> Checkpoint | None:
    """The newest that is whole and of the trial asked for, by its facts. What is not goes, lest it pass for newer."""
    for unfinished in root.glob(".*"):
        _remove(unfinished)  # of processes that were killed while they wrote
    found = None
    for folder in _newest_first(root):
        checkpoint = _read(folder)
        if checkpoint is None or not is_ours(checkpoint.facts):
            _remove(folder)
        else:
            found = found or checkpoint
    return found


def _newest_first(root: Path) -> list[Path]:
    return sorted(root.glob("[0-9]*"), reverse=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _check_room(root: Path, tensors: Tensors) -> None:
    needed = ROOM * sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if shutil.disk_usage(root).free < needed:
        raise OSError(errno.ENOSPC, f"less than {needed / 2**20:.0f} MiB free")


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    # Copies, so that no two share memory, which safetensors refuses.
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in checkpoint.tensors.items()}
    save_file(copies, folder / TENSORS)
    (folder / FACTS).write_text(json.dumps(checkpoint.facts, allow_nan=False))
    digests = {name: _sha256(folder / name) for name in (TENSORS, FACTS)}
    (folder / MANIFEST).write_text(json.dumps(digests))
    for path in (folder / TENSORS, folder / FACTS, folder / MANIFEST, folder):
        _flush(path)


def _read(folder: Path) -> Checkpoint | None:
    """None unless every byte is the one that was written."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        if digests != {name: _sha256(folder / name) for name in (TENSORS, FACTS)}:
            return None
        return Checkpoint(json.loads((folder / FACTS).read_text()), load_file(folder / TENSORS))
    except (OSError, ValueError, SafetensorError):
        return None


def _reason(error: OSError | SafetensorError) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    return f"{reason}; make room there" if FULL.search(reason) else reason


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """To the disk itself, so that the rename is not there before the bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
