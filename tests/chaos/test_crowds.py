"""Many processes at once: on an empty database, and of two kinds on one study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial
from sqlalchemy import URL

from storage.engine import open_rdb_storage, parse_url
from storage.native import PostgresStorage
from storage.schema import VERSION
from tests.chaos.crew import PROCESSES, make_crew, query
from tests.conftest import new_database

TRIALS_EACH = 15


@pytest.fixture
def empty(server_url: URL) -> Iterator[URL]:
    """A database without any table, of which there may be many in one test."""
    with new_database(server_url, "template0") as url:
        yield url


def open_and_create(url: str, folder: str) -> None:
    make_crew(parse_url(url), Path(folder), trials=3)


def crowd(url: URL, folder: Path) -> None:
    """32 processes make one schema and one study of an empty database."""
    arguments = (url.render_as_string(hide_password=False), str(folder))
    processes = [PROCESSES.Process(target=open_and_create, args=arguments) for _ in range(32)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 32
    assert query(url, "SELECT version FROM incident_hpo.version") == [(VERSION,)]
    assert query(url, "SELECT count(*), max(study_name) FROM studies") == [(1, "study")]
    assert query(url, "SELECT count(*) FROM trials") == [(1,)]  # its baseline


def test_thirty_two_processes_on_an_empty_database_make_one_schema_and_one_study(empty: URL, tmp_path: Path) -> None:
    crowd(empty, tmp_path)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("round_", range(20))
def test_thirty_two_processes_on_an_empty_database_twenty_times(empty: URL, tmp_path: Path, round_: int) -> None:
    crowd(empty, tmp_path)


def run_trials(url: str, kind: str, folder: str) -> None:
    """Asks or claims, reports and tells; then writes what its cache holds when all are done."""
    location = parse_url(url)
    storage = PostgresStorage(location) if kind == "native" else open_rdb_storage(location)
    study = optuna.load_study(study_name="study", storage=storage)
    for _ in range(TRIALS_EACH):
        trial = _next(study, storage)
        x = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        for step in range(3):
            trial.report(x, step)
            trial.should_prune()
        study.tell(trial, x)
    trials: list[FrozenTrial] = []
    while sum(trial.state.is_finished() for trial in trials) < 8 * TRIALS_EACH:
        trials = study.get_trials(deepcopy=False)
    Path(folder, f"{kind}-{fingerprint(trials)}").touch()


def _next(study: optuna.Study, storage: optuna.storages.BaseStorage) -> optuna.Trial:
    if not isinstance(storage, PostgresStorage):
        return study.ask()
    trial_id = storage.claim(study._study_id, "worker").trial_id
    assert trial_id is not None
    return optuna.Trial(study, trial_id)


def fingerprint(trials: list[FrozenTrial]) -> str:
    content = [
        (
            t.number,
            t._trial_id,
            t.state.name,
            t.values,
            t.params,
            t.intermediate_values,
            t.user_attrs,
            t.system_attrs,
            str(t.distributions),
            str(t.datetime_start),
            str(t.datetime_complete),
        )
        for t in trials
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def test_three_plain_and_five_native_processes_number_without_gaps_and_end_with_equal_caches(
    database: URL, tmp_path: Path
) -> None:
    storage = PostgresStorage(database)
    study = optuna.create_study(study_name="study", storage=storage, direction="maximize")
    storage.manage(study._study_id, 8 * TRIALS_EACH, lease_s=60)
    kinds = ["plain"] * 3 + ["native"] * 5
    location = database.render_as_string(hide_password=False)
    processes = [PROCESSES.Process(target=run_trials, args=(location, kind, str(tmp_path))) for kind in kinds]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    trials = study.get_trials()
    assert [trial.number for trial in trials] == list(range(8 * TRIALS_EACH))
    digest = fingerprint(trials)
    assert {path.name for path in tmp_path.iterdir()} == {f"plain-{digest}", f"native-{digest}"}
