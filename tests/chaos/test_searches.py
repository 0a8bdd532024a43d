"""What is proposed, and when a study ends, with many workers at once, some of them killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL

from hpo.ending import extend, pause, resume
from hpo.errors import InputError
from hpo.study import open_study
from search_spaces.space import label
from storage import terms
from storage.native import PostgresStorage
from tests.chaos.crew import Crew, make_crew

TIMEOUT_S = 60.0
RATES = {"type": "categorical", "choices": [0.001, 0.002, 0.004, 0.008, 0.016, 0.032]}
FINITE = {
    "parameters": {
        "learning_rate": RATES,
        "batch_size": {"type": "int", "low": 16, "high": 96, "step": 16},
        "epochs": {"type": "int", "low": 1, "high": 6},
    }
}  # 216 points


def trials_of(url: URL) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="study", storage=PostgresStorage(url)).get_trials(deepcopy=False)


def terms_of(url: URL) -> terms.Terms:
    storage = PostgresStorage(url)
    found = terms.read(storage.ask, storage.get_study_id_from_name("study"))
    assert found is not None
    return found


def wait_for(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(url: URL) -> int:
    return sum(trial.state.is_finished() for trial in trials_of(url))


def repeats(trials: list[optuna.trial.FrozenTrial]) -> dict[str, int]:
    return {point: n for point, n in Counter(label(trial.params) for trial in trials).items() if n > 1}


def test_eight_workers_try_no_point_of_a_finite_space_twice(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=150, space=FINITE, step_s=0.01)
    crew.start(8)
    assert crew.join() == [0] * 8
    found = trials_of(database)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 150
    assert repeats(found) == {}


def test_study_whose_workers_were_all_killed_goes_on_without_a_repeat(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=60, space=FINITE, step_s=0.03)
    crew.start(4)
    wait_for(lambda: ended(database) >= 15)
    before = {trial.number: trial.params for trial in trials_of(database) if trial.params}
    for process in crew.alive():
        process.kill()
    crew.join()
    crew.start(4)
    crew.join()
    found = trials_of(database)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 60
    assert repeats(found) == {}
    assert {number: found[number].params for number in before} == before


def test_study_ends_when_every_point_of_its_space_was_tried(database: URL, tmp_path: Path) -> None:
    space = {"parameters": {"learning_rate": RATES, "epochs": {"type": "int", "low": 1, "high": 3}}}
    crew = make_crew(database, tmp_path, trials=50, space=space, step_s=0.01)
    crew.start(3)
    assert crew.join() == [0] * 3
    assert (len({label(trial.params) for trial in trials_of(database)}), terms_of(database).ended) == (
        18,
        "every point of its space was tried",
    )


@pytest.fixture
def crew(database: URL, tmp_path: Path) -> Crew:
    return make_crew(database, tmp_path, trials=30, step_s=0.05)


def test_paused_study_starts_no_trial_until_it_is_resumed(database: URL, crew: Crew) -> None:
    study = open_study(PostgresStorage(database), "study")[0]
    crew.start(2)
    wait_for(lambda: ended(database) >= 4)
    pause(study)
    wait_for(lambda: all(trial.state.is_finished() for trial in trials_of(database)))
    rested = ended(database)
    time.sleep(2.5)  # workers look once a second
    assert (ended(database), len(crew.alive())) == (rested, 2)
    resume(study)
    assert crew.join() == [0, 0]
    assert (ended(database), terms_of(database).paused) == (30, False)
    with pytest.raises(InputError, match="is not paused"):
        resume(study)


def test_study_ends_when_its_hours_are_over_and_goes_on_when_they_are_extended(database: URL, tmp_path: Path) -> None:
    hours = 1.5 / 3600
    crew = make_crew(database, tmp_path, trials=500, step_s=0.05, budget={"hours": hours})
    crew.start(2)
    assert crew.join() == [0, 0]
    first = ended(database)
    assert 2 <= first < 100
    assert terms_of(database).ended == f"its {hours} hours are over"
    study, file = open_study(PostgresStorage(database), "study")
    assert extend(study, file, 0, hours=20 / 3600, gpu_hours=0).budget.trials == 500
    assert terms_of(database).ended is None
    crew.start(1)
    wait_for(lambda: ended(database) > first)
    crew.alive()[0].terminate()
    crew.join()


def test_study_ends_when_its_gpu_hours_are_used_up_by_all_workers(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=500, step_s=0.05, budget={"gpu_hours": 3 / 3600})
    crew.start(3)
    assert crew.join() == [0] * 3
    found = terms_of(database)
    assert found.ended == f"its {3 / 3600} GPU-hours are used up"
    spent = sum(trial.duration.total_seconds() for trial in trials_of(database) if trial.duration)
    assert 3.0 <= found.device_s < 6.0
    assert found.device_s == pytest.approx(spent, rel=0.2)


def test_time_of_a_worker_that_was_killed_counts_until_its_lease_ends(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=1, step_s=0.6, lease_s=2.0)
    crew.start(1)
    wait_for(lambda: trials_of(database)[0].intermediate_values)
    crew.alive()[0].kill()
    crew.join()
    crew.start(1)
    crew.join()
    assert 3.0 < terms_of(database).device_s < 8.0  # 0.6 s and a lease, then 1.8 s again


def test_study_ends_on_a_plateau(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=300, step_s=0.005, budget={"plateau_trials": 8})
    crew.start(2)
    assert crew.join() == [0, 0]
    values = [trial.value for trial in trials_of(database) if trial.value is not None]
    assert 9 <= len(values) < 300
    assert terms_of(database).ended == "the last 8 trials brought no gain above noise"


def test_extended_study_counts_its_plateau_anew(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=300, step_s=0.005, budget={"plateau_trials": 8})
    crew.start(1)
    crew.join()
    before = ended(database)
    study, file = open_study(PostgresStorage(database), "study")
    extend(study, file, 1, 0, 0)
    crew.start(1)
    crew.join()
    assert ended(database) >= before + 8


def test_equal_draws_of_two_workers_never_run_at_once(database: URL, tmp_path: Path) -> None:
    """One choice and a fixed rest: whoever draws second must draw again."""
    space = {"parameters": {"learning_rate": RATES}} | {"baselines": {"base": {"learning_rate": 0.001}}}
    crew = make_crew(database, tmp_path, trials=6, space=space, step_s=0.05)
    crew.start(6)
    assert crew.join() == [0] * 6
    assert repeats(trials_of(database)) == {}


def test_hours_in_which_an_ended_study_rested_do_not_count_when_it_is_extended(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=500, step_s=0.05, budget={"hours": 1 / 3600})
    crew.start(1)
    assert crew.join() == [0]
    time.sleep(2.5)
    elapsed = terms_of(database).elapsed_s
    assert elapsed < 2
    study, file = open_study(PostgresStorage(database), "study")
    extend(study, file, 0, hours=1 / 3600, gpu_hours=0)
    before = ended(database)
    crew.start(1)
    assert crew.join() == [0, 0]
    assert ended(database) > before


def test_silence_of_a_worker_that_was_killed_uses_up_no_gpu_hours(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=500, step_s=0.5, lease_s=1.0, budget={"gpu_hours": 10 / 3600})
    crew.start(1)
    wait_for(lambda: trials_of(database)[0].intermediate_values)
    crew.alive()[0].kill()
    crew.join()
    time.sleep(4.0)
    assert terms_of(database).device_s < 3.5


def test_trial_of_a_worker_that_died_as_its_study_ended_is_taken_back(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=500, step_s=0.5, lease_s=1.0)
    crew.start(1)
    wait_for(lambda: trials_of(database)[0].intermediate_values)
    storage = PostgresStorage(database)
    terms.end(storage.ask, storage.get_study_id_from_name("study"), "somebody said so")
    crew.alive()[0].kill()
    crew.join()
    crew.start(1)
    assert crew.join()[1:] == [0]
    assert [trial.state for trial in trials_of(database)] == [TrialState.WAITING]
