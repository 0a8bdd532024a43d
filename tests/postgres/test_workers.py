"""Who works where: workers show themselves, and leave when their box is drained."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from storage.native import PostgresStorage
from storage.workers import Place, WorkerRow, leave, list_workers, register
from tests.chaos.crew import Crew, make_crew
from tests.postgres.conftest import Query, Run

DEADLINE_S = 30.0
GPU = Place("gpu-box", "gpu 0", "gpu 0", "launch")


@pytest.fixture
def crew(database: URL, tmp_path: Path) -> Iterator[Crew]:
    """Nobody yet; long trials, and a sign of life each second."""
    crew = make_crew(database, tmp_path, trials=50, lease_s=3.0, step_s=5.0)
    yield crew
    for process in crew.alive():
        process.kill()


@pytest.fixture
def storage(database: URL, crew: Crew) -> Iterator[PostgresStorage]:
    storage = PostgresStorage(database)
    yield storage
    storage.remove_session()


def until(storage: PostgresStorage, holds: Callable[[list[WorkerRow]], bool]) -> list[WorkerRow]:
    deadline = time.monotonic() + DEADLINE_S
    while not holds(found := list_workers(storage.ask)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def at_work(count: int) -> Callable[[list[WorkerRow]], bool]:
    return lambda found: [row.trial is not None for row in found] == [True] * count


def test_workers_are_listed_with_host_trial_and_last_sign_of_life(crew: Crew, storage: PostgresStorage) -> None:
    crew.start(2, box="left")
    crew.start(1, box="right")
    found = until(storage, at_work(3))
    assert [row.host for row in found] == ["left", "left", "right"]
    assert sorted(row.trial for row in found if row.trial is not None) == [0, 1, 2]
    assert {(row.study, row.ended, row.is_silent, row.done) for row in found} == {("study", None, False, 0)}
    assert max(row.seen_s for row in found) < 3.0


def test_killed_worker_is_silent_after_a_lease_until_another_has_its_place(
    crew: Crew, storage: PostgresStorage, query: Query, database: URL
) -> None:
    study = storage.get_study_id_from_name("study")
    register(storage.ask, "gpu-box:1", study, GPU)
    query(database, "UPDATE incident_hpo.workers SET seen = seen - interval '4 s', began = began - interval '4 s'")
    assert [(row.worker, row.is_silent) for row in list_workers(storage.ask)] == [("gpu-box:1", True)]
    register(storage.ask, "gpu-box:2", study, GPU)
    (row,) = list_workers(storage.ask)
    assert (row.worker, row.is_silent, row.starts) == ("gpu-box:2", False, 2)


def test_counts_are_of_all_that_worked_in_a_place(storage: PostgresStorage) -> None:
    study = storage.get_study_id_from_name("study")
    for number, state in enumerate(("COMPLETE", "FAIL", "PRUNED")):
        worker = f"gpu-box:{number}"
        register(storage.ask, worker, study, GPU)
        trial = storage.claim(study, worker).trial_id
        contents = '\'{"outcome": ["0.5"]}\'' if state == "COMPLETE" else "'{}'"
        token = storage.ask("SELECT token FROM incident_hpo.leases WHERE trial_id = %s", (trial,))[0][0]
        storage.ask(f"SELECT incident_hpo.save_v1(%s, %s, {contents}, %s)", (trial, token, state))
    (row,) = list_workers(storage.ask)
    assert (row.done, row.failed, row.starts, row.trial) == (3, 1, 3, None)


def test_worker_that_has_ended_well_is_listed_no_more_and_one_that_failed_is(storage: PostgresStorage) -> None:
    study = storage.get_study_id_from_name("study")
    for worker, code in (("box:1", 0), ("box:2", 78)):
        register(storage.ask, worker, study, Place("box", worker, "cpu", None))
        leave(storage.ask, worker, code)
    assert [(row.worker, row.ended) for row in list_workers(storage.ask)] == [("box:2", 78)]


def test_drained_box_gives_its_trials_back_and_leaves_the_other_box_alone(
    crew: Crew, storage: PostgresStorage, hpo: Run, database: URL
) -> None:
    crew.start(2, box="left")
    crew.start(1, box="right")
    until(storage, at_work(3))
    started = time.monotonic()
    drained = hpo(database, "workers", "drain", "left")
    assert (drained.returncode, drained.stdout) == (
        0,
        "all workers of left have left (2); their trials wait for others\n",
    )
    assert time.monotonic() - started < 15.0
    for process in crew.processes[:2]:
        process.join(DEADLINE_S)
    assert [process.exitcode for process in crew.processes] == [0, 0, None]
    assert [(row.host, row.trial is not None) for row in list_workers(storage.ask)] == [("right", True)]
    states = storage.ask("SELECT state::text, count(*) FROM public.trials GROUP BY 1 ORDER BY 1")
    assert states == [("RUNNING", 1), ("WAITING", 2)]
    assert storage.ask("SELECT sum(attempts) FROM incident_hpo.leases") == [(1,)]  # being sent away is no attempt


def test_worker_started_in_the_place_of_a_drained_one_leaves_without_a_trial(storage: PostgresStorage) -> None:
    study = storage.get_study_id_from_name("study")
    assert not register(storage.ask, "gpu-box:1", study, GPU)
    storage.ask("SELECT incident_hpo.drain_v1('gpu-box')")
    assert register(storage.ask, "gpu-box:2", study, GPU)
    assert not register(storage.ask, "gpu-box:3", study, Place("gpu-box", "gpu 0", "gpu 0", "a later launch"))


def test_unknown_host_is_refused_with_those_that_there_are(
    crew: Crew, storage: PostgresStorage, hpo: Run, database: URL
) -> None:
    register(storage.ask, "box:1", storage.get_study_id_from_name("study"), Place("box", "cpu", "cpu", None))
    refused = hpo(database, "workers", "drain", "other")
    assert (refused.returncode, refused.stdout) == (2, "hpo: no worker runs on 'other'; hosts with workers: box\n")


def test_table_of_workers_keeps_every_column_at_eighty(storage: PostgresStorage, hpo: Run, database: URL) -> None:
    study = storage.get_study_id_from_name("study")
    place = Place("gpu-box-in-a-far-away-rack.example.org", "gpu 0.2", "gpu 0", None)
    register(storage.ask, "box:1", study, place)
    leave(storage.ask, "box:1", 78)
    lines = hpo(database, "workers").stdout.splitlines()
    assert lines[0].split() == ["host", "device", "study", "now", "seen", "done", "failed", "starts"]
    assert max(map(len, lines)) <= 80
    assert "ended: broken set-up (78)" in lines[1]
    assert "".join(line.split()[0] for line in lines[1:] if line.strip()) == place.host


def test_workers_come_as_json_with_their_state_in_words(storage: PostgresStorage, hpo: Run, database: URL) -> None:
    register(storage.ask, "box:1", storage.get_study_id_from_name("study"), Place("box", "gpu 0", "gpu 0", None))
    listed: subprocess.CompletedProcess[str] = hpo(database, "workers", "--json")
    (row,) = json.loads(listed.stdout)
    assert (row["host"], row["device"], row["state"], row["trial"]) == ("box", "gpu 0", "idle", None)
