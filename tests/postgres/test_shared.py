"""Studies shared with plain Optuna: what one storage writes the other reads, to the last bit, and either may delete."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import datetime

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from storage.engine import open_rdb_storage
from storage.native import PostgresStorage

Open = Callable[[URL], BaseStorage]
ODD_FLOATS = [math.nan, math.inf, -math.inf, 0.1 + 0.2, 5e-324, 1e308, -0.0]
SPACE = {
    "x": FloatDistribution(-1e9, 1e9),
    "rate": FloatDistribution(1e-9, 1.0, log=True),
    "step": FloatDistribution(0, 1, step=0.1),
    "n": IntDistribution(1, 1024, log=True),
    "kind": CategoricalDistribution([None, True, 7, 0.5, "ä\n\x1f'\\\"%s"]),
}


def plain(url: URL) -> BaseStorage:
    return optuna.storages.get_storage(open_rdb_storage(url))


def make_trial(rng: random.Random, state: TrialState) -> FrozenTrial:
    params = {
        "x": rng.uniform(-1e9, 1e9),
        "rate": 10 ** rng.uniform(-9, 0),
        "step": rng.randint(0, 10) / 10,
        "n": rng.randint(1, 1024),
        "kind": rng.choice(SPACE["kind"].choices),  # type: ignore[attr-defined]
    }
    chosen = {name: value for name, value in params.items() if rng.random() < 0.8}
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=state,
        value=rng.choice([math.inf, -math.inf, 0.1 + 0.2]) if state == TrialState.COMPLETE else None,
        datetime_start=None if state == TrialState.WAITING else datetime(2026, 3, 29, 2, 30, 0, rng.randrange(10**6)),
        datetime_complete=datetime(2026, 10, 25, 2, 30) if state.is_finished() else None,
        params=chosen,
        distributions={name: SPACE[name] for name in chosen},
        user_attrs={"odd": rng.sample(ODD_FLOATS, 3), "text": "ä\u2028\n\\"},
        system_attrs={"fixed_params": chosen, "none": None},
        intermediate_values={step: rng.choice(ODD_FLOATS) for step in rng.sample(range(100), 5)},
    )


def shown(trials: list[FrozenTrial]) -> list[str]:
    """repr() tells NaN from NaN no worse than from 0, and 1 from 1.0 and True."""
    return [repr(trial) for trial in trials]


@pytest.mark.parametrize(("write", "read"), [(PostgresStorage, plain), (plain, PostgresStorage)], ids=["ours", "plain"])
def test_everything_that_one_storage_writes_reads_the_same_in_the_other(database: URL, write: Open, read: Open) -> None:
    rng, writer = random.Random(0), write(database)
    study_id = writer.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "shared")
    writer.set_study_user_attr(study_id, "ä%s", {"odd": ODD_FLOATS})
    for number in range(60):
        writer.create_new_trial(study_id, make_trial(rng, list(TrialState)[number % 5]))
    reader = read(database)
    assert shown(reader.get_all_trials(study_id)) == shown(writer.get_all_trials(study_id))
    assert repr(reader.get_all_studies()[0].__dict__) == repr(writer.get_all_studies()[0].__dict__)


@pytest.mark.parametrize(
    ("first", "second"), [(PostgresStorage, plain), (plain, PostgresStorage)], ids=["ours", "plain"]
)
def test_trial_begun_through_one_storage_can_be_ended_through_the_other(
    database: URL, first: Open, second: Open
) -> None:
    begun = optuna.create_study(study_name="shared", storage=first(database))
    ended = optuna.load_study(study_name="shared", storage=second(database))
    for step in range(3):
        trial = begun.ask()
        x = trial.suggest_float("x", 0, 1)
        trial.report(x, step)
        ended.tell(trial.number, x)
        assert shown(begun.get_trials()) == shown(ended.get_trials())


def test_plain_optuna_deletes_a_study_with_leases_whole(
    database: URL, rows: Callable[[URL], dict[str, list[str]]], query: Callable[..., list[tuple[int]]]
) -> None:
    storage = PostgresStorage(database)
    study = optuna.create_study(study_name="shared", storage=storage)
    storage.manage(study._study_id, 9, lease_s=60)
    trial_id = storage.claim(study._study_id, "worker").trial_id
    assert trial_id is not None
    optuna.delete_study(study_name="shared", storage=plain(database))
    assert not [name for name, found in rows(database).items() if found and "version" not in name]
    assert query(
        database, "SELECT (SELECT count(*) FROM incident_hpo.leases) + (SELECT count(*) FROM incident_hpo.studies)"
    ) == [(0,)]
    with pytest.raises(KeyError):
        storage.set_trial_intermediate_value(trial_id, 1, 0.5)
    with pytest.raises(KeyError):
        storage.get_all_trials(study._study_id)


def test_unfinished_trials_are_seen_to_change_in_every_read(database: URL) -> None:
    writer = optuna.create_study(study_name="shared", storage=plain(database))
    reader = optuna.load_study(study_name="shared", storage=PostgresStorage(database))
    trial = writer.ask()
    for step in range(5):
        trial.report(step, step)
        trial.set_user_attr("step", step)
        assert shown(reader.get_trials()) == shown(writer.get_trials())
