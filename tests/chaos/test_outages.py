"""A database that dies, stays away or no longer answers: no worker dies of it, and nothing acknowledged is lost."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL, make_url

from bench.proxy import FaultProxy
from storage import embedded
from storage.connection import CALL_TIMEOUT_S
from storage.native import REPORT_PATIENCE_S, PostgresStorage
from tests.chaos.crew import Crew, check_record, make_crew

RESUMED_WITHIN_S = 10.0
STOPPED_WITHIN_S = 15.0


@pytest.fixture
def own_server() -> Iterator[tuple[Path, URL]]:
    """A server that the test may kill."""
    home = Path(tempfile.mkdtemp(prefix="hpo-outage-"))
    home.chmod(0o755)
    yield home, make_url(embedded.start(home))
    embedded.stop(home)
    shutil.rmtree(home)


def kill_server(home: Path) -> None:
    """All its processes at once, as when the power goes."""
    for process in embedded._processes(embedded._place(home)):
        process.kill()


def wait_for_tells(crew: Crew, more: int) -> None:
    wanted = len(crew.told()) + more
    while len(crew.told()) < wanted:
        assert crew.alive(), crew.join()
        time.sleep(0.02)


def kill_again_and_again(home: Path, url: URL, folder: Path, *, times: int, trials: int) -> None:
    crew = make_crew(url, folder, trials=trials, step_s=0.1)
    crew.start(4)
    for _ in range(times):
        wait_for_tells(crew, 4)
        kill_server(home)
        embedded.start(home)
        returned = time.monotonic()
        wait_for_tells(crew, 1)
        assert time.monotonic() - returned < RESUMED_WITHIN_S
    assert crew.join(300) == [0] * 4
    check_record(url, crew, trials=trials)


def test_server_killed_three_times_under_load_costs_no_trial_and_no_worker(
    own_server: tuple[Path, URL], tmp_path: Path
) -> None:
    kill_again_and_again(*own_server, tmp_path, times=3, trials=40)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("round_", range(5))
def test_server_killed_twenty_times_under_load_costs_no_trial_and_no_worker(
    own_server: tuple[Path, URL], tmp_path: Path, round_: int
) -> None:
    kill_again_and_again(*own_server, tmp_path, times=20, trials=200)


def stay_away(home: Path, url: URL, folder: Path, *, seconds: float) -> None:
    """Longer than a lease: every lease has run out when the server is back, and none may be taken."""
    crew = make_crew(url, folder, trials=12, lease_s=2, step_s=0.3)
    crew.start(3)
    wait_for_tells(crew, 3)
    kill_server(home)
    time.sleep(seconds)  # the fault itself
    embedded.start(home)
    assert crew.join() == [0] * 3
    assert {trial.state for trial in check_record(url, crew, trials=12)} == {TrialState.COMPLETE}
    assert max(entry["s"] for entry in crew.ledger() if "s" in entry) < CALL_TIMEOUT_S + 1


def test_server_that_is_away_for_three_leases_fails_no_trial(own_server: tuple[Path, URL], tmp_path: Path) -> None:
    stay_away(*own_server, tmp_path, seconds=6)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_server_that_is_away_for_a_minute_fails_no_trial(own_server: tuple[Path, URL], tmp_path: Path) -> None:
    stay_away(*own_server, tmp_path, seconds=60)


def answer_nothing(url: URL, folder: Path, *, seconds: float) -> None:
    with FaultProxy(url) as proxy:
        crew = make_crew(url, folder, trials=12, lease_s=2, step_s=0.3)
        crew.start(3, url=proxy.url.render_as_string(hide_password=False))
        wait_for_tells(crew, 3)
        proxy.black_hole()
        time.sleep(seconds)  # the fault itself
        proxy.heal()
        healed = time.monotonic()
        wait_for_tells(crew, 1)
        assert time.monotonic() - healed < CALL_TIMEOUT_S + RESUMED_WITHIN_S
        assert crew.join() == [0] * 3
    check_record(url, crew, trials=12)
    assert max(entry["s"] for entry in crew.ledger() if "s" in entry) < CALL_TIMEOUT_S + 1


def test_call_into_a_network_that_swallows_everything_ends_by_its_deadline(database: URL, tmp_path: Path) -> None:
    answer_nothing(database, tmp_path, seconds=CALL_TIMEOUT_S + 2)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_network_that_swallows_everything_for_two_minutes_costs_no_trial(database: URL, tmp_path: Path) -> None:
    answer_nothing(database, tmp_path, seconds=120)


def lose_answers(url: URL, folder: Path, *, trials: int, seed: int) -> None:
    with FaultProxy(url) as proxy:
        crew = make_crew(url, folder, trials=trials, lease_s=5)
        proxy.reset_after_commit(0.2, seed=seed)
        crew.start(4, url=proxy.url.render_as_string(hide_password=False))
        assert crew.join(300) == [0] * 4
    check_record(url, crew, trials=trials)


def test_answers_lost_after_the_commit_make_no_second_trial_and_kill_no_worker(database: URL, tmp_path: Path) -> None:
    lose_answers(database, tmp_path, trials=30, seed=0)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(5))
def test_answers_lost_after_the_commit_of_two_hundred_trials(database: URL, tmp_path: Path, seed: int) -> None:
    lose_answers(database, tmp_path, trials=200, seed=seed)


def test_report_does_not_hold_up_the_training_while_the_database_is_away(own_server: tuple[Path, URL]) -> None:
    home, url = own_server
    storage = PostgresStorage(url)
    study = optuna.create_study(study_name="study", storage=storage, direction="maximize")
    storage.manage(study._study_id, 1, lease_s=60)
    trial_id = storage.claim(study._study_id, "worker").trial_id
    assert trial_id is not None
    trial = optuna.Trial(study, trial_id)
    trial.report(0.1, 1)
    kill_server(home)
    started = time.monotonic()
    trial.report(0.2, 2)
    assert not trial.should_prune()
    assert time.monotonic() - started < REPORT_PATIENCE_S + 2
    embedded.start(home)
    study.tell(trial, 0.3)
    assert PostgresStorage(url).get_trial(trial_id).intermediate_values == {1: 0.1, 2: 0.2}


def test_worker_told_to_stop_in_a_network_that_swallows_everything_is_gone_in_time(
    database: URL, tmp_path: Path
) -> None:
    with FaultProxy(database) as proxy:
        crew = make_crew(database, tmp_path, trials=99, step_s=0.2)
        crew.start(url=proxy.url.render_as_string(hide_password=False))
        wait_for_tells(crew, 1)
        proxy.black_hole()
        time.sleep(1)  # so that a report is under way
        crew.processes[0].terminate()
        assert crew.join(STOPPED_WITHIN_S) == [75]


def test_attribute_that_went_with_a_report_survives_a_crash_of_the_server(own_server: tuple[Path, URL]) -> None:
    home, url = own_server
    storage = PostgresStorage(url)
    study = optuna.create_study(study_name="study", storage=storage, direction="maximize")
    storage.manage(study._study_id, 1, lease_s=60)
    trial_id = storage.claim(study._study_id, "worker").trial_id
    assert trial_id is not None
    storage.set_trial_system_attr(trial_id, "rung", 1)
    storage.set_trial_intermediate_value(trial_id, 1, 0.5)
    kill_server(home)
    embedded.start(home)
    assert PostgresStorage(url).get_trial(trial_id).system_attrs == {"rung": 1}
