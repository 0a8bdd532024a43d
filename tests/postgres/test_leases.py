"""Claims and leases: a budget is kept exactly, and what a silent worker held is taken up again, never written twice."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import URL

from storage.engine import open_rdb_storage
from storage.keeper import Keeper
from storage.leases import LeaseLost
from storage.native import PostgresStorage

BUDGET = 20
CLAIM_ALL = """
import json, optuna
from hpo.connect import storage_url
from storage.native import PostgresStorage
go()
storage = PostgresStorage(storage_url())
study = optuna.load_study(study_name="study", storage=storage, sampler=optuna.samplers.RandomSampler())
told = []
while (claim := storage.claim(study._study_id, "worker")).verdict == "claimed":
    trial = optuna.Trial(study, claim.trial_id)
    study.tell(trial, trial.suggest_float("x", 0, 1))
    told.append(trial.number)
print(json.dumps(told))
"""


@pytest.fixture
def storage(database: URL) -> PostgresStorage:
    """Of a worker that may sweep: its connections are older than a lease."""
    storage = PostgresStorage(database)
    storage.connected_s = lambda: 1e6  # type: ignore[method-assign]
    return storage


@pytest.fixture
def study(storage: PostgresStorage) -> optuna.Study:
    study = optuna.create_study(study_name="study", storage=storage, direction="maximize")
    storage.manage(study._study_id, BUDGET, lease_s=1e-3)
    return study


@pytest.fixture
def other(database: URL) -> PostgresStorage:
    """Another process, as far as the database knows."""
    storage = PostgresStorage(database)
    storage.connected_s = lambda: 1e6  # type: ignore[method-assign]
    return storage


def take(storage: PostgresStorage, study: optuna.Study) -> optuna.Trial:
    claim = storage.claim(study._study_id, "worker")
    assert claim.trial_id is not None, claim.verdict
    return optuna.Trial(optuna.load_study(study_name="study", storage=storage), claim.trial_id)


def hold_for_long(storage: PostgresStorage, study: optuna.Study) -> None:
    storage.manage(study._study_id, BUDGET, lease_s=60)


def test_eight_processes_end_with_exactly_the_budget(
    database: URL, study: optuna.Study, storage: PostgresStorage, at_once: Callable[..., list[str]]
) -> None:
    hold_for_long(storage, study)
    study.enqueue_trial({"x": 0.5})
    told = sorted(number for output in at_once(database, CLAIM_ALL) for number in json.loads(output))
    assert told == list(range(BUDGET))
    assert [(trial.number, trial.state) for trial in study.get_trials()] == [(n, TrialState.COMPLETE) for n in told]


def test_waiting_trials_come_first_and_count_towards_the_budget(storage: PostgresStorage, study: optuna.Study) -> None:
    hold_for_long(storage, study)
    for x in (0.25, 0.75):
        study.enqueue_trial({"x": x})
    storage.manage(study._study_id, 3, lease_s=60)
    found = []
    for _ in range(3):
        trial = take(storage, study)
        found.append((trial.number, trial.suggest_float("x", 0, 1)))
        study.tell(trial, 0.0)
    assert found[:2] == [(0, 0.25), (1, 0.75)]
    assert [number for number, _ in found] == [0, 1, 2]
    assert storage.claim(study._study_id, "worker").verdict == "done"


def test_claim_waits_while_others_run_the_last_trials(
    storage: PostgresStorage, other: PostgresStorage, study: optuna.Study
) -> None:
    storage.manage(study._study_id, 1, lease_s=60)
    trial = take(storage, study)
    assert other.claim(study._study_id, "worker").verdict == "wait"
    study.tell(trial, 1.0)
    assert other.claim(study._study_id, "worker").verdict == "done"


def test_study_that_is_not_managed_gives_no_claims(storage: PostgresStorage) -> None:
    plain = optuna.create_study(storage=storage)
    with pytest.raises(KeyError, match="is not managed"):
        storage.claim(plain._study_id, "worker")


def test_trial_of_a_silent_worker_comes_next_with_its_parameters_and_without_its_reports(
    storage: PostgresStorage, other: PostgresStorage, study: optuna.Study
) -> None:
    lost = take(other, study)
    x = lost.suggest_float("x", 0, 1)
    lost.report(0.5, 1)
    time.sleep(2e-3)
    trial = take(storage, study)
    assert (trial.number, trial.params, trial.suggest_float("x", 0, 1)) == (lost.number, {"x": x}, x)
    trial.report(0.125, 1)
    study.tell(trial, 1.0)
    assert [(t.number, t.intermediate_values) for t in study.get_trials()] == [(0, {1: 0.125})]


@pytest.mark.parametrize(
    "write",
    [
        lambda storage, trial: trial.report(0.5, 2),
        lambda storage, trial: storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5]),
        lambda storage, trial: storage.set_trial_state_values(trial._trial_id, TrialState.FAIL),
        lambda storage, trial: storage.set_trial_state_values(trial._trial_id, TrialState.WAITING),
        lambda storage, trial: (trial.suggest_float("y", 0, 1), storage.flush(trial._trial_id)),
        lambda storage, trial: (trial.set_user_attr("late", 1), storage.flush(trial._trial_id)),
    ],
    ids=["report", "tell", "fail", "give back", "parameter", "attribute"],
)
def test_nothing_that_a_worker_writes_after_it_lost_its_lease_is_accepted(
    storage: PostgresStorage,
    other: PostgresStorage,
    study: optuna.Study,
    write: Callable[[PostgresStorage, optuna.Trial], object],
) -> None:
    late = take(other, study)
    time.sleep(2e-3)
    trial = take(storage, study)
    before = storage.get_trial(trial._trial_id)
    for _ in range(2):  # nor a second write, on whatever path
        with pytest.raises(LeaseLost):
            write(other, late)
    hold_for_long(storage, study)
    storage.flush(trial._trial_id)
    assert PostgresStorage(storage._url).get_trial(trial._trial_id) == before


def test_lease_that_ran_out_and_was_not_taken_is_renewed_by_the_next_write(
    storage: PostgresStorage, study: optuna.Study
) -> None:
    trial = take(storage, study)
    time.sleep(2e-3)
    trial.report(0.5, 1)
    study.tell(trial, 0.5)
    assert study.get_trials()[0].value == 0.5


def test_release_that_is_to_blame_fails_the_trial_the_third_time(storage: PostgresStorage, study: optuna.Study) -> None:
    states = []
    for _ in range(3):
        trial = take(storage, study)
        assert storage.release(trial._trial_id, reason="it broke")
        states.append(storage.get_trial(trial._trial_id).state)
    assert states == [TrialState.WAITING, TrialState.WAITING, TrialState.FAIL]
    assert study.get_trials()[0].user_attrs == {"trace": "it broke, three times"}


def test_release_without_blame_may_be_repeated_without_end(storage: PostgresStorage, study: optuna.Study) -> None:
    for _ in range(5):
        trial = take(storage, study)
        assert (trial.number, storage.release(trial._trial_id, reason=None)) == (0, True)


def test_silent_worker_counts_as_an_attempt(
    storage: PostgresStorage, other: PostgresStorage, study: optuna.Study
) -> None:
    for _ in range(3):
        assert take(other, study).number == 0
        time.sleep(2e-3)
    assert take(storage, study).number == 1
    failed = study.get_trials()[0]
    assert (failed.state, failed.user_attrs) == (TrialState.FAIL, {"trace": "the worker died, three times"})


def test_trial_that_gets_farther_each_time_is_tried_without_end(storage: PostgresStorage, study: optuna.Study) -> None:
    for attempt in range(1, 9):
        trial = take(storage, study)
        storage.resumed(trial._trial_id, attempt * 100)
        assert storage.release(trial._trial_id, reason="it broke")
        assert (trial.number, storage.get_trial(trial._trial_id).state) == (0, TrialState.WAITING)


def test_trial_that_goes_on_from_the_same_place_three_times_has_failed(
    storage: PostgresStorage, study: optuna.Study
) -> None:
    states = []
    for examples in (100, 200, 200, 100):
        trial = take(storage, study)
        storage.resumed(trial._trial_id, examples)
        storage.release(trial._trial_id, reason="it broke")
        states.append(storage.get_trial(trial._trial_id).state)
    assert states == [TrialState.WAITING] * 3 + [TrialState.FAIL]


def test_nobody_sweeps_before_its_connection_is_a_lease_old(
    storage: PostgresStorage, other: PostgresStorage, study: optuna.Study
) -> None:
    take(other, study)
    time.sleep(2e-3)
    storage.connected_s = lambda: 0.5e-3  # type: ignore[method-assign]
    assert take(storage, study).number == 1
    storage.connected_s = lambda: 1.0  # type: ignore[method-assign]
    assert take(storage, study).number == 0


def test_running_trial_without_a_lease_gets_one_and_is_taken_back(
    database: URL, storage: PostgresStorage, study: optuna.Study
) -> None:
    storage.manage(study._study_id, BUDGET, lease_s=0.1)
    plain = optuna.load_study(study_name="study", storage=open_rdb_storage(database))
    plain.ask()
    assert take(storage, study).number == 1  # it was seen for the first time
    time.sleep(0.11)
    assert take(storage, study).number == 0


def test_running_trial_without_a_lease_is_left_alone_while_it_reports(
    database: URL, storage: PostgresStorage, study: optuna.Study
) -> None:
    storage.manage(study._study_id, BUDGET, lease_s=0.1)
    plain = optuna.load_study(study_name="study", storage=open_rdb_storage(database))
    trial = plain.ask()
    for step in range(3):
        study.tell(another := take(storage, study), 0.0)
        assert another.number == step + 1
        trial.report(0.5, step)
        time.sleep(0.11)
    plain.tell(trial, 0.5)
    assert study.get_trials()[0].value == 0.5


def test_trial_ended_by_somebody_else_is_told_as_finished(
    database: URL, storage: PostgresStorage, study: optuna.Study
) -> None:
    trial = take(storage, study)
    optuna.load_study(study_name="study", storage=open_rdb_storage(database)).tell(trial.number, 999.0)
    with pytest.raises(UpdateFinishedTrialError):
        trial.report(0.5, 1)
    with pytest.raises(LeaseLost):
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5])
    assert take(storage, study).number == 1


def test_writer_without_a_lease_is_refused_while_another_holds_one(
    storage: PostgresStorage, other: PostgresStorage, study: optuna.Study
) -> None:
    trial = take(storage, study)
    with pytest.raises(LeaseLost):
        other.set_trial_user_attr(trial._trial_id, "mine", 1)
    with pytest.raises(LeaseLost):
        other.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0])


def test_equal_parameters_of_a_running_trial_are_said_before_anything_is_written(
    storage: PostgresStorage, other: PostgresStorage, study: optuna.Study
) -> None:
    hold_for_long(storage, study)
    first, second = take(storage, study), take(other, study)
    first.suggest_float("x", 0, 1)
    second.suggest_float("x", 0, 1)
    assert storage.flush(first._trial_id, params_hash="same")
    assert not other.flush(second._trial_id, params_hash="same")
    assert storage.get_trial(second._trial_id).params == {}
    study.tell(first, 1.0)
    assert other.flush(second._trial_id, params_hash="same")


def test_keeper_renews_a_lease_that_nobody_writes(
    database: URL, storage: PostgresStorage, other: PostgresStorage, study: optuna.Study
) -> None:
    storage.manage(study._study_id, BUDGET, lease_s=0.5)
    keeper = Keeper(storage, database, study._study_id, lease_s=0.5)
    claim = storage.claim(study._study_id, "worker")
    keeper.hold(claim, lambda: None)
    keeper.start()
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert other.ask("SELECT incident_hpo.sweep_v1(%s, 1e6)", (study._study_id,)) == [(0,)]
    keeper.stop()


def test_keeper_says_once_that_the_lease_is_gone(
    database: URL, storage: PostgresStorage, other: PostgresStorage, study: optuna.Study
) -> None:
    claim = storage.claim(study._study_id, "worker")
    time.sleep(2e-3)
    take(other, study)
    calls, lost = [], threading.Event()

    def on_lost() -> None:
        calls.append(1)
        lost.set()

    keeper = Keeper(storage, database, study._study_id, lease_s=0.03)
    keeper.hold(claim, on_lost)
    keeper.start()
    assert lost.wait(10)
    keeper.stop()
    assert calls == [1]


def test_parameters_and_reports_reach_the_database_when_they_are_said_to(
    database: URL, storage: PostgresStorage, other: PostgresStorage, study: optuna.Study
) -> None:
    trial = take(storage, study)
    x = trial.suggest_float("x", 0, 1)
    storage.flush(trial._trial_id)
    assert other.get_trial(trial._trial_id).params == {"x": x}
    trial.report(0.5, 1)
    assert other.get_trial(trial._trial_id).intermediate_values == {1: 0.5}


def test_pickle_holds_no_password(database: URL) -> None:
    storage = PostgresStorage(database.set(password="canary").update_query_dict({"password": "canary"}))
    assert b"canary" not in pickle.dumps(storage)
