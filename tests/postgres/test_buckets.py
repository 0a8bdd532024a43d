"""Checkpoints that go from box to box through a bucket, on a server of either kind."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

from hpo.bucket import INDEX, Bucket
from hpo.errors import SetupError
from hpo.shared_checkpoints import SharedCheckpoints

NAME = "desk"


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """Where each kind answers."""
    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    gcs = create_server("127.0.0.1", 0, in_memory=True, default_bucket=NAME)
    gcs.start()
    yield {
        "s3": "http://{}:{}".format(*s3.get_host_and_port()),
        "gs": f"http://127.0.0.1:{gcs._api._httpd.server_port}",
    }
    gcs.stop()
    s3.stop()


@pytest.fixture(params=["s3", "gs"])
def url(request: pytest.FixtureRequest, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a folder in a bucket, which the libraries find as they do on a box: by their environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", servers["s3"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", servers["gs"])
    if request.param == "s3":
        requests.put(f"{servers['s3']}/{NAME}")
    return f"{request.param}://{NAME}/{request.node.name}"


def box(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> SharedCheckpoints:
    monkeypatch.setenv("HPO_HOME", str(home))
    return SharedCheckpoints("study", url)


def write(box: SharedCheckpoints, name: str) -> None:
    """As the trainer does."""
    folder = box.folder(3) / name
    folder.mkdir(parents=True)
    (folder / "facts.json").write_text(json.dumps({"name": name}))
    (folder / "tensors.safetensors").write_bytes(name.encode() * 100_000)


def names(box: SharedCheckpoints) -> list[str]:
    return sorted(path.name for path in box.folder(3).glob("*"))


def test_the_next_box_finds_the_two_newest(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = box(url, tmp_path / "one", monkeypatch)
    for name in ("001", "002", "003"):
        write(one, name)
        one.settle(3, 10)
    other = box(url, tmp_path / "other", monkeypatch)
    other.fetch(3, lambda: False)
    assert names(other) == ["002", "003"]
    for path in other.folder(3).rglob("*.*"):
        assert path.read_bytes() == (one.folder(3) / path.relative_to(other.folder(3))).read_bytes()


def test_the_older_of_the_two_is_replaced_first(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, home in enumerate(("one", "two", "three")):
        here = box(url, tmp_path / home, monkeypatch)
        here.fetch(3, lambda: False)
        write(here, f"{number}")
        here.settle(3, 10)
    last = box(url, tmp_path / "last", monkeypatch)
    last.fetch(3, lambda: False)
    assert names(last) == ["1", "2"]


def test_nothing_is_left_of_a_recorded_trial(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = box(url, tmp_path / "one", monkeypatch)
    write(one, "001")
    one.settle(3, 10)
    one.remove(3)
    assert not one.folder(3).exists()
    other = box(url, tmp_path / "other", monkeypatch)
    other.fetch(3, lambda: False)
    assert names(other) == []


def test_checkpoint_that_the_trainer_removes_while_it_is_sent_arrives(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = box(url, tmp_path / "one", monkeypatch)
    write(one, "001")
    put = Bucket.put

    def remove_meanwhile(self: Bucket, key: str, folder: Path) -> None:
        for path in (one.folder(3) / "001").iterdir():
            path.unlink()
        put(self, key, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", remove_meanwhile)
        one.settle(3, 10)
    other = box(url, tmp_path / "other", monkeypatch)
    other.fetch(3, lambda: False)
    assert (other.folder(3) / "001" / "tensors.safetensors").read_bytes() == b"001" * 100_000


def test_index_cannot_name_a_place_outside_of_the_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = box(url, tmp_path / "one", monkeypatch)
    write(one, "001")
    one.settle(3, 10)
    bucket, index = Bucket(url), json.dumps({"name": "../../../out", "files": ["facts.json"]})
    bucket._store.write(bucket._id("study/3/a", INDEX), io.BytesIO(index.encode()))
    other = box(url, tmp_path / "other", monkeypatch)
    other.fetch(3, lambda: False)
    assert names(other) == ["out"]
    assert not list(tmp_path.glob("out"))


def test_bucket_that_is_not_there_is_said_in_a_sentence(url: str) -> None:
    with pytest.raises(SetupError, match=rf"^checkpoints cannot be written to {url[:2]}://none: \w+.*$"):
        Bucket(f"{url[:2]}://none")


def test_bucket_that_no_longer_answers_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(Bucket, "__init__", lambda self, url: None)
    monkeypatch.setattr(Bucket, "get", lambda *_: str(released.wait(60)))
    here, stops = box("s3://desk", tmp_path, monkeypatch), iter([False, False, True])
    started = time.monotonic()
    here.fetch(3, lambda: next(stops))
    here.settle(3, 0.2)
    assert time.monotonic() - started < 10
    released.set()
    here._carrying.join()


def test_folder_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"checkpoints cannot be written to .*file/study: Not a directory"):
        SharedCheckpoints("study", str(tmp_path / "file"))


def test_what_is_left_of_ended_trials_goes(tmp_path: Path) -> None:
    here = SharedCheckpoints("study", str(tmp_path))
    for number in (1, 2, 3):
        here.folder(number).mkdir()
    here.tidy([0, 1, 3])
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["2"]
