"""Writing files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hpo.errors import InputError


def make_folder(path: Path) -> None:
    """Raises InputError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made ({error.strerror})") from None


def write_text(path: Path, text: str) -> None:
    """Raises InputError where the place cannot be written; what was there stays."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
