"""What a box keeps: found by what it was made from, whole or not at all, and telling nothing by its name."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import pytest

from objectives import cache
from objectives.cache import cached, keep, lookup, place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_something_is_made_once_per_key(folder: Path) -> None:
    numbers = count()

    def make() -> bytes:
        return str(next(numbers)).encode()

    found = [cached(folder, kind, key, make) for kind, key in (("a", 1), ("a", 1), ("a", 2), ("b", 1), ("a", 1))]
    assert found == [b"0", b"0", b"1", b"2", b"0"]
    assert cached(None, "a", 1, make) == b"3"


def test_what_is_kept_is_for_its_user_alone_and_its_name_tells_nothing(folder: Path) -> None:
    keep(folder, "pairs", {"category": "Kanarienvogel"}, b"text")
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert file.name.startswith("pairs-")
    assert "kanarienvogel" not in file.name.lower()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_what_is_damaged_is_made_anew(folder: Path, damage: str) -> None:
    keep(folder, "pairs", 1, b"whole" * 100)
    file = place(folder, "pairs", 1)
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-1], "flipped": content[:-1] + b"?", "empty": b""}[damage])
    assert lookup(folder, "pairs", 1) is None
    assert cached(folder, "pairs", 1, lambda: b"anew") == b"anew" == lookup(folder, "pairs", 1)


def test_what_was_not_used_for_longest_makes_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT_BYTES", 400)
    for key in range(3):
        keep(folder, "pairs", key, bytes(90))
        os.utime(place(folder, "pairs", key), (key, key))
    assert lookup(folder, "pairs", 0) is not None  # used now
    keep(folder, "pairs", 3, bytes(90))
    assert [key for key in range(4) if lookup(folder, "pairs", key) is None] == [1]


def test_a_folder_that_cannot_be_written_to_costs_no_more_than_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert cached(tmp_path / "file", "pairs", 1, lambda: b"made") == b"made"
    assert cached(Path("/proc/none"), "pairs", 1, lambda: b"made") == b"made"


def test_a_write_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert cached(folder, "pairs", 1, lambda: b"made") == b"made"
    assert list(folder.iterdir()) == []
