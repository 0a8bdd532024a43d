"""What trials of one box have in common, kept in a folder: found by what it was made from, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

LIMIT_BYTES = 20 << 30  # beyond, what was not used for longest goes
DIGEST_BYTES = 32


def cached(folder: Path | None, kind: str, key: Any, make: Callable[[], bytes]) -> bytes:
    """Made once per folder and key; without a folder, each time. A full or read-only disk costs time, no more."""
    if folder is None:
        return make()
    found = lookup(folder, kind, key)
    return found if found is not None else keep(folder, kind, key, make())


def lookup(folder: Path, kind: str, key: Any) -> bytes | None:
    path = place(folder, kind, key)
    try:
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    whole = hashlib.sha256(content[DIGEST_BYTES:]).digest() == content[:DIGEST_BYTES]
    return content[DIGEST_BYTES:] if whole else None


def keep(folder: Path, kind: str, key: Any, content: bytes) -> bytes:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_room(folder, len(content))
        with NamedTemporaryFile(dir=folder, prefix=".partial-", delete=False) as file:
            try:
                file.write(hashlib.sha256(content).digest() + content)
                file.flush()
                os.replace(file.name, place(folder, kind, key))
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:
        pass
    return content


def place(folder: Path, kind: str, key: Any) -> Path:
    """Its name tells nothing of the data: names of files are read by all and sundry."""
    return folder / f"{kind}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}"


def _make_room(folder: Path, wanted: int) -> None:
    files = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another writer's, which has its name by now
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    files.sort()
    used = sum(size for _, size, _ in files) + wanted
    for _, size, path in files:
        if used <= LIMIT_BYTES:
            return
        path.unlink(missing_ok=True)
        used -= size
