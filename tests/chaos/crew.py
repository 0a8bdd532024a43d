"""Studies for stub workers, the workers, and what must hold of a study's record whatever befell them."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import optuna
import psycopg2
from optuna.trial import TrialState
from sqlalchemy import URL

from hpo.config import StudyFile
from hpo.study import create_study
from storage.connection import Connection
from storage.native import PostgresStorage
from tests.chaos.stub import STEPS, Orders, work

PROCESSES = multiprocessing.get_context("forkserver")  # loads the libraries once
PROCESSES.set_forkserver_preload(["tests.chaos.stub", "alembic.command", "optuna.samplers._tpe.sampler"])
END_TIMEOUT_S = 60.0


@dataclass
class Crew:
    """Stub workers on one study."""

    orders: Orders
    processes: list[ForkServerProcess] = field(default_factory=list)

    def start(self, count: int = 1, **changed: Any) -> None:
        for _ in range(count):
            process = PROCESSES.Process(target=work, args=(replace(self.orders, **changed),))
            process.start()
            self.processes.append(process)

    def alive(self) -> list[ForkServerProcess]:
        return [process for process in self.processes if process.is_alive()]

    def join(self, timeout_s: float = END_TIMEOUT_S) -> list[int | None]:
        """Exit codes; whoever is not done in time is killed and says None."""
        for process in self.processes:
            process.join(timeout_s)
        codes = [process.exitcode for process in self.processes]
        for process in self.alive():
            process.kill()
        return codes

    def ledger(self) -> list[dict[str, Any]]:
        path = self.orders.ledger
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def told(self) -> list[int]:
        return [entry["told"] for entry in self.ledger() if "told" in entry]


SPACE = {
    "parameters": {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
    "baselines": {"base": {"learning_rate": 1e-3}},
}


def make_crew(
    url: URL,
    folder: Path,
    *,
    name: str = "study",
    trials: int,
    lease_s: float = 1.0,
    space: dict[str, Any] = SPACE,
    budget: dict[str, Any] | None = None,
    **orders: Any,
) -> Crew:
    """A study of `trials` outcomes with one baseline, and nobody yet to work on it."""
    file = StudyFile.model_validate(
        {
            "name": name,
            "incidents": {"path": "/none.csv", "sha256": "0" * 64},
            "budget": {"trials": trials} | (budget or {}),
            "space": space,
            "lease_s": lease_s,
        }
    )
    storage = PostgresStorage(url)
    create_study(url, storage, file, dataset=b"none: the trainer is a stub")
    storage.remove_session()
    location = url.render_as_string(hide_password=False)
    return Crew(Orders(location, name, folder / f"{name}.ledger", **orders))


def check_record(url: URL, crew: Crew, *, trials: int, may_fail: bool = False) -> list[optuna.trial.FrozenTrial]:
    """Exactly `trials` outcomes, numbered without gaps, each of one run alone, and every acknowledged one there."""
    storage = PostgresStorage(url)
    found = optuna.load_study(study_name=crew.orders.study, storage=storage).get_trials()
    assert [trial.number for trial in found] == list(range(trials))
    allowed = {TrialState.COMPLETE, TrialState.FAIL} if may_fail else {TrialState.COMPLETE}
    assert {trial.state for trial in found} <= allowed
    complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
    for trial in complete:
        assert trial.intermediate_values == dict.fromkeys(range(1, STEPS + 1), trial.user_attrs["run"])
        assert trial.value == trial.user_attrs["run"]
        assert trial.params.keys() == {"learning_rate"}
    told = crew.told()
    assert len(set(told)) == len(told)
    assert set(told) <= {trial._trial_id for trial in complete}
    study = "(SELECT study_id FROM public.studies WHERE study_name = %s)"
    held = storage.ask(
        f"SELECT count(*) FROM incident_hpo.leases WHERE held AND study_id = {study}", (crew.orders.study,)
    )
    assert held == [(0,)]
    storage.remove_session()
    return found


def query(url: URL, statement: str, *values: object) -> list[tuple[Any, ...]]:
    connection = Connection(url)
    try:
        return connection.run(statement, values)
    except psycopg2.ProgrammingError as error:
        raise AssertionError(statement) from error
    finally:
        connection.close()
