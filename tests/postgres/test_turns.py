"""Turns of events that once went wrong: trials that change hands, are given back, or are hidden in a long reply."""

from __future__ import annotations

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial
from sqlalchemy import URL

from storage.engine import open_rdb_storage
from storage.native import PostgresStorage


def make_worker(database: URL) -> PostgresStorage:
    storage = PostgresStorage(database)
    storage.connected_s = lambda: 1e6  # type: ignore[method-assign]
    return storage


@pytest.fixture
def one(database: URL) -> PostgresStorage:
    return make_worker(database)


@pytest.fixture
def other(database: URL) -> PostgresStorage:
    return make_worker(database)


@pytest.fixture
def study_id(one: PostgresStorage) -> int:
    study = optuna.create_study(study_name="study", storage=one)
    one.manage(study._study_id, 500, lease_s=1e-3)
    return study._study_id


def take(storage: PostgresStorage, study_id: int) -> int:
    """A trial under a lease that will not run out by itself."""
    trial_id = storage.claim(study_id, "worker").trial_id
    assert trial_id is not None
    storage.ask("UPDATE incident_hpo.leases SET expires = 'infinity' WHERE trial_id = %s", (trial_id,))
    return trial_id


def sweep(storage: PostgresStorage, study_id: int) -> None:
    storage.ask("UPDATE incident_hpo.leases SET expires = '-infinity' WHERE study_id = %s", (study_id,))
    assert storage.ask("SELECT incident_hpo.sweep_v1(%s, 1e6)", (study_id,)) == [(1,)]


@pytest.fixture
def refused(one: PostgresStorage, other: PostgresStorage, study_id: int) -> int:
    """A trial of `other` whose parameters were refused, for `one` runs a trial with equal ones."""
    first, second = take(one, study_id), take(other, study_id)
    assert one.flush(first, params_hash="equal")
    assert not other.flush(second, params_hash="equal")
    return second


def test_trial_whose_parameters_were_refused_can_still_report(
    one: PostgresStorage, other: PostgresStorage, refused: int
) -> None:
    other.set_trial_intermediate_value(refused, 1, 0.5)
    assert one.get_trial(refused).intermediate_values == {1: 0.5}


def test_trial_whose_parameters_were_refused_can_still_end(
    one: PostgresStorage, other: PostgresStorage, refused: int
) -> None:
    other.set_trial_state_values(refused, TrialState.PRUNED)
    assert one.get_trial(refused).state == TrialState.PRUNED


def test_trial_that_waits_with_parameters_that_another_runs_by_now_can_be_claimed(
    one: PostgresStorage, other: PostgresStorage, study_id: int
) -> None:
    first, second = take(one, study_id), take(other, study_id)
    assert one.flush(first, params_hash="equal")
    one.release(first, reason="it broke")
    assert other.flush(second, params_hash="equal")
    assert take(one, study_id) == first


def test_trial_claimed_again_by_the_worker_that_lost_it_unnoticed_is_as_in_the_database(
    database: URL, one: PostgresStorage, other: PostgresStorage, study_id: int
) -> None:
    trial_id = take(one, study_id)
    one.set_trial_intermediate_value(trial_id, 1, 0.5)
    sweep(other, study_id)
    assert take(one, study_id) == trial_id
    assert one.get_trial(trial_id) == open_rdb_storage(database).get_trial(trial_id)


def test_trial_given_back_without_blame_begins_anew_without_its_reports(one: PostgresStorage, study_id: int) -> None:
    trial_id = take(one, study_id)
    one.set_trial_intermediate_value(trial_id, 1, 0.5)
    one.release(trial_id, reason=None)
    assert take(one, study_id) == trial_id
    assert one.get_trial(trial_id).intermediate_values == {}


def test_cache_sees_what_was_written_to_a_trial_between_two_waits(
    database: URL, one: PostgresStorage, other: PostgresStorage, study_id: int
) -> None:
    optuna.load_study(study_name="study", storage=one).enqueue_trial({"x": 1.0})
    assert len(one.get_all_trials(study_id)) == 1
    trial_id = take(other, study_id)
    other.set_trial_user_attr(trial_id, "note", 1)
    other.flush(trial_id)
    other.release(trial_id, reason="it broke")
    assert one.get_all_trials(study_id) == open_rdb_storage(database).get_all_trials(study_id)


def test_trial_claimed_behind_more_changes_than_a_reply_holds_is_running(
    one: PostgresStorage, other: PostgresStorage, study_id: int
) -> None:
    for _ in range(250):
        one.create_new_trial(study_id, create_trial(state=TrialState.WAITING))
    one.get_all_trials(study_id)
    for _ in range(210):
        other.set_trial_state_values(take(other, study_id), TrialState.COMPLETE, [1.0])
    assert one.get_trial(take(one, study_id)).state == TrialState.RUNNING


def test_late_tell_is_not_taken_for_the_one_that_a_stranger_made(
    database: URL, one: PostgresStorage, other: PostgresStorage, study_id: int
) -> None:
    trial_id = take(one, study_id)
    open_rdb_storage(database).set_trial_state_values(trial_id, TrialState.COMPLETE, [999.0])
    sweep(other, study_id)
    with pytest.raises(UpdateFinishedTrialError):
        one.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5])


def test_trial_told_to_wait_by_its_holder_may_be_claimed_without_end(one: PostgresStorage, study_id: int) -> None:
    for _ in range(5):
        claim = one.claim(study_id, "worker")
        assert (claim.verdict, claim.attempt) == ("claimed", 1)
        assert claim.trial_id is not None
        one.set_trial_state_values(claim.trial_id, TrialState.WAITING)
