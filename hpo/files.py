"""Writing files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hpo.errors import InputError


def make_folder(path: Path) -> None:
    """Raises InputError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made ({error.strerror})") from None


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Raises InputError where the place cannot be written; what was there stays."""
    write_texts({path: text}, mode)


def write_texts(texts: Mapping[Path, str], mode: int = 0o666) -> None:
    """All of them or, where one cannot be written, none; what was there stays then. Raises InputError."""
    partial = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in texts}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial[path].touch(mode)  # before anything is in it; the umask takes away from it
            partial[path].write_text(text, encoding="utf-8")
        for path in texts:
            if path.is_dir():  # found out now, as the first would have been replaced
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        for path in texts:
            partial[path].replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        for unfinished in partial.values():
            with suppress(OSError):
                unfinished.unlink()
