"""Data sets in the database: whole or not there, sent once, and gone when no study needs them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import optuna
import pytest
from psycopg2.errors import ForeignKeyViolation
from sqlalchemy import URL

from storage import datasets, schema, terms
from storage.connection import Row, Unavailable
from storage.datasets import CHUNK_BYTES
from storage.engine import StorageError
from storage.native import PostgresStorage
from storage.terms import Terms
from tests.postgres.scene import IS_BLOCKED, Scene, ask

CHUNKS = "SELECT count(*) FROM incident_hpo.dataset_chunks WHERE sha256 = %s"
WHOLE = "SELECT count(*) FROM incident_hpo.datasets WHERE sha256 = %s"
NAMED = "SELECT dataset FROM incident_hpo.studies WHERE study_id = %s"
ADD_CHUNK = "INSERT INTO incident_hpo.dataset_chunks (sha256, number, content) VALUES (%s, %s, '')"
AGE = "UPDATE incident_hpo.{} SET stored = stored - interval '25 hours' WHERE sha256 = %s"
CUT_BLOCKED = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"


@pytest.fixture
def scene(module_database: URL) -> Iterator[Scene]:
    scene = Scene(module_database)
    yield scene
    scene.storage.remove_session()


@pytest.fixture
def other(module_database: URL) -> Iterator[Scene]:
    """Another box, with a study of its own."""
    scene = Scene(module_database)
    yield scene
    scene.storage.remove_session()


@pytest.fixture
def content(request: pytest.FixtureRequest) -> bytes:
    """A data set of one short chunk, another one in each test."""
    return made_for(request, 100)


@pytest.fixture
def large(request: pytest.FixtureRequest) -> bytes:
    """One of two chunks."""
    return made_for(request, CHUNK_BYTES + 1)


def made_for(request: pytest.FixtureRequest, size: int) -> bytes:
    return random.Random(request.node.name).randbytes(size)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def age(scene: Scene, sha256: str) -> None:
    for table in ("datasets", "dataset_chunks"):
        scene.ask(AGE.format(table), sha256)


def store_anything(scene: Scene) -> None:
    """For a study made for it."""
    study_id = optuna.create_study(storage=scene.storage)._study_id
    scene.storage.manage(study_id, 1, lease_s=3600)
    datasets.store(scene.storage.ask, study_id, b"anything")


def test_data_set_larger_than_a_chunk_comes_back_on_another_box(scene: Scene, other: Scene, large: bytes) -> None:
    sha256 = datasets.store(scene.storage.ask, scene.study_id, large)
    assert (sha256, scene.ask(NAMED, scene.study_id)) == (digest(large), digest(large))
    assert datasets.fetch(other.storage.ask, sha256) == large


def test_data_set_without_bytes_comes_back(scene: Scene) -> None:
    assert datasets.fetch(scene.storage.ask, datasets.store(scene.storage.ask, scene.study_id, b"")) == b""


def test_data_set_that_nobody_stored_is_none(scene: Scene) -> None:
    assert datasets.fetch(scene.storage.ask, digest(b"never stored")) is None


def test_study_that_is_not_managed_names_no_data_set(scene: Scene, content: bytes) -> None:
    study = optuna.create_study(storage=scene.storage)
    with pytest.raises(KeyError, match=f"study {study._study_id} is not managed"):
        datasets.store(scene.storage.ask, study._study_id, content)


def test_data_set_stored_for_another_study_is_not_sent_again(scene: Scene, other: Scene, large: bytes) -> None:
    sent: list[int] = []

    def watched(statement: str, values: tuple[Any, ...] = ()) -> list[Row]:
        sent.extend(len(value) for value in values if isinstance(value, memoryview))
        return other.storage.ask(statement, values)

    sha256 = datasets.store(scene.storage.ask, scene.study_id, large)
    assert datasets.store(watched, other.study_id, large) == sha256
    assert (sent, scene.ask(CHUNKS, sha256), scene.ask(WHOLE, sha256)) == ([], 2, 1)
    assert scene.ask(NAMED, other.study_id) == sha256


def test_data_set_stored_twice_at_once_is_stored_once(scene: Scene, other: Scene, large: bytes) -> None:
    with scene.session() as first, scene.session() as watch, ThreadPoolExecutor(2) as pool:
        ask(first, ADD_CHUNK, digest(large), 0)
        stored = [pool.submit(datasets.store, box.storage.ask, box.study_id, large) for box in (scene, other)]
        watch.autocommit = True
        while not wait(stored, timeout=0.01).done and ask(watch, IS_BLOCKED, first.info.backend_pid) < 2:
            pass
        first.rollback()
        assert [future.result() for future in stored] == [digest(large)] * 2
    assert (scene.ask(CHUNKS, digest(large)), scene.ask(WHOLE, digest(large))) == (2, 1)
    assert datasets.fetch(scene.storage.ask, digest(large)) == large


def test_statements_sent_twice_store_and_fetch_the_same(scene: Scene, content: bytes) -> None:
    def twice(statement: str, values: tuple[Any, ...] = ()) -> list[Row]:
        scene.storage.ask(statement, values)
        return scene.storage.ask(statement, values)

    assert datasets.fetch(twice, datasets.store(twice, scene.study_id, content)) == content


def store_and_cut(scene: Scene, storage: PostgresStorage, content: bytes) -> str:
    """What `storage` stores, its connection cut by the server when the first chunk is there."""
    with scene.session() as first, ThreadPoolExecutor(1) as pool:
        ask(first, ADD_CHUNK, digest(content), 1)
        stored = pool.submit(datasets.store, storage.ask, scene.study_id, content)
        scene.see_waiting(stored, first.info.backend_pid)
        assert scene.ask(CUT_BLOCKED, first.info.backend_pid) is True
        first.rollback()
        return stored.result()


@pytest.fixture
def gone(scene: Scene) -> Iterator[PostgresStorage]:
    """Of a process that stops at the first error."""
    storage = PostgresStorage(scene.url, interrupted=lambda: True)
    yield storage
    storage.remove_session()


def test_store_that_was_cut_off_leaves_nothing_whole(scene: Scene, gone: PostgresStorage, large: bytes) -> None:
    with pytest.raises(Unavailable):
        store_and_cut(scene, gone, large)
    assert (scene.ask(CHUNKS, digest(large)), datasets.fetch(scene.storage.ask, digest(large))) == (1, None)
    assert scene.ask(NAMED, scene.study_id) is None


def test_store_that_was_cut_off_is_completed_by_the_next(scene: Scene, gone: PostgresStorage, large: bytes) -> None:
    with pytest.raises(Unavailable):
        store_and_cut(scene, gone, large)
    datasets.store(scene.storage.ask, scene.study_id, large)
    assert datasets.fetch(scene.storage.ask, digest(large)) == large


def test_store_goes_on_over_a_new_connection(scene: Scene, large: bytes) -> None:
    assert store_and_cut(scene, scene.storage, large) == digest(large)
    assert datasets.fetch(scene.storage.ask, digest(large)) == large


DAMAGES = {
    "another byte": "UPDATE incident_hpo.dataset_chunks SET content = set_byte(content, 7, 255 - get_byte(content, 7))",
    "chunk cut short": "UPDATE incident_hpo.dataset_chunks SET content = substring(content FROM 1 FOR 99)",
    "chunk too long": "UPDATE incident_hpo.dataset_chunks SET content = content || content",
    "no chunk": "DELETE FROM incident_hpo.dataset_chunks",
    "another length": "UPDATE incident_hpo.datasets SET bytes = bytes + 1",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_data_set_is_refused_until_it_is_stored_again(scene: Scene, content: bytes, damage: str) -> None:
    sha256 = datasets.store(scene.storage.ask, scene.study_id, content)
    scene.ask(f"{damage} WHERE sha256 = %s", sha256)
    refused = f"^the data set {sha256[:12]}… in PostgreSQL is damaged; run `hpo create` again where its incidents are$"
    with pytest.raises(StorageError, match=refused):
        datasets.fetch(scene.storage.ask, sha256)
    datasets.store(scene.storage.ask, scene.study_id, content)
    assert datasets.fetch(scene.storage.ask, sha256) == content


def test_data_set_of_a_deleted_study_is_removed_once_it_is_old(scene: Scene, other: Scene, content: bytes) -> None:
    sha256 = datasets.store(scene.storage.ask, scene.study_id, content)
    scene.storage.delete_study(scene.study_id)
    store_anything(other)
    assert datasets.fetch(other.storage.ask, sha256) == content
    age(other, sha256)
    store_anything(other)
    assert (datasets.fetch(other.storage.ask, sha256), other.ask(CHUNKS, sha256)) == (None, 0)


def test_data_set_that_another_study_uses_stays(scene: Scene, other: Scene, content: bytes) -> None:
    sha256 = datasets.store(scene.storage.ask, scene.study_id, content)
    datasets.store(other.storage.ask, other.study_id, content)
    scene.storage.delete_study(scene.study_id)
    age(other, sha256)
    store_anything(other)
    assert datasets.fetch(other.storage.ask, sha256) == content


def test_data_set_that_a_study_names_cannot_be_removed(scene: Scene, content: bytes) -> None:
    sha256 = datasets.store(scene.storage.ask, scene.study_id, content)
    with pytest.raises(ForeignKeyViolation):
        scene.ask("DELETE FROM incident_hpo.datasets WHERE sha256 = %s", sha256)


def test_chunks_that_a_store_left_behind_are_removed_once_they_are_old(scene: Scene, content: bytes) -> None:
    scene.ask(ADD_CHUNK, digest(content), 0)
    store_anything(scene)
    assert scene.ask(CHUNKS, digest(content)) == 1
    age(scene, digest(content))
    store_anything(scene)
    assert scene.ask(CHUNKS, digest(content)) == 0


def test_old_data_set_that_is_named_at_the_moment_of_its_removal_stays(
    scene: Scene, other: Scene, content: bytes
) -> None:
    sha256 = datasets.store(scene.storage.ask, scene.study_id, content)
    datasets.store(scene.storage.ask, scene.study_id, b"another")
    age(scene, sha256)
    with scene.session() as first:
        ask(first, datasets.NAME, sha256, len(content), scene.study_id)
        scene.during(first, lambda: store_anything(other))
    assert datasets.fetch(scene.storage.ask, sha256) == content


@pytest.mark.parametrize(
    ("statement", "value"),
    [(datasets.FIND_CHUNK, hashlib.sha256(b"old").digest()), (datasets.WRITE_CHUNK, b"old")],
    ids=["found", "written"],
)
def test_old_chunk_that_is_stored_at_the_moment_of_its_removal_stays(
    scene: Scene, other: Scene, statement: str, value: bytes
) -> None:
    scene.ask(datasets.WRITE_CHUNK, digest(b"old"), 0, b"old")
    age(scene, digest(b"old"))
    with scene.session() as first:
        ask(first, statement, digest(b"old"), 0, value)
        scene.during(first, lambda: store_anything(other))
    assert scene.ask(CHUNKS, digest(b"old")) == 1


def test_chunks_are_not_compressed_a_second_time(scene: Scene) -> None:
    sha256 = datasets.store(scene.storage.ask, scene.study_id, bytes(10_000))
    size = "SELECT pg_column_size(content) FROM incident_hpo.dataset_chunks WHERE sha256 = %s"
    assert scene.ask(size, sha256) == 10_000


def test_study_of_the_release_before_is_kept_and_may_name_a_data_set(
    empty_database: URL, monkeypatch: pytest.MonkeyPatch, rows: Callable[[URL], dict[str, list[str]]], content: bytes
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "FILES", schema.FILES[:2])
        patch.setattr(schema, "VERSION", 2)
        storage = PostgresStorage(empty_database)
        study_id = optuna.create_study(storage=storage)._study_id
        storage.ask("INSERT INTO incident_hpo.studies (study_id, budget, lease) VALUES (%s, 100, '1 h')", (study_id,))
        storage.create_new_trial(study_id)
    before = rows(empty_database)
    storage = PostgresStorage(empty_database)
    assert rows(empty_database) == before
    assert terms.read(storage.ask, study_id) == Terms(100, 3600.0, False, None, 0.0, 0.0)
    sha256 = datasets.store(storage.ask, study_id, content)
    assert (datasets.fetch(storage.ask, sha256), storage.claim(study_id, "worker").verdict) == (content, "claimed")
