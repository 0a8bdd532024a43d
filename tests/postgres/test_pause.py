"""One bug on several boxes pauses a study, which says so, and goes on when it is told to."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL

from hpo.errors import InputError
from hpo.pause import pause_reason, resume
from storage.native import PostgresStorage
from tests.chaos.crew import Crew, make_crew

TRIALS = 9


@pytest.fixture
def crew(database: URL, tmp_path: Path) -> Crew:
    return make_crew(database, tmp_path, trials=TRIALS)


@pytest.fixture
def study(crew: Crew, database: URL) -> optuna.Study:
    return optuna.load_study(study_name="study", storage=PostgresStorage(database))


def fail(study: optuna.Study, worker: str, trace: str) -> None:
    trial = study.ask()
    trial.set_user_attr("worker", worker)
    trial.set_user_attr("trace", trace)
    study.tell(trial, state=TrialState.FAIL)


def test_workers_on_two_boxes_with_one_bug_stop_before_the_budget_is_used_up(
    crew: Crew, study: optuna.Study, database: URL, hpo: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for box in ("one", "two"):
        crew.start(box=box, has_bug=True)
    assert crew.join() == [1, 1]
    assert 3 <= len(failed := study.get_trials(states=(TrialState.FAIL,))) < TRIALS
    assert not study.get_trials(states=(TrialState.RUNNING,))
    crew.start(box="three")
    assert crew.join() == [1, 1, 1]
    said = hpo(database, "status", "study").stdout
    assert f"study study is paused: {len(failed)} trials on 2 boxes failed of KeyError" in said
    assert hpo(database, "study", "resume", "study").returncode == 0
    assert "paused" not in hpo(database, "status", "study").stdout
    crew.start(box="three")
    assert crew.join() == [1, 1, 1, 0]
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == TRIALS - len(failed)


TRACE = "/a/objectives/training.py:9 step\nKeyError: 'a'"


@pytest.mark.parametrize(
    ("failures", "is_paused"),
    [
        ([("one:1", TRACE), ("one:2", TRACE), ("two:1", TRACE)], True),
        ([("one:1", TRACE), ("one:2", TRACE), ("one:3", TRACE)], False),
        ([("one:1", TRACE), ("two:2", TRACE)], False),
        ([("one:1", TRACE), ("two:2", TRACE), ("two:2", TRACE.replace("step", "fit"))], False),
        ([("one:1", TRACE), ("two:2", TRACE), ("two:2", TRACE.replace("KeyError", "TypeError"))], False),
        ([("one:1", TRACE), ("two:2", TRACE.replace("/a/", "/b/")), ("three:2", TRACE.replace("'a'", "'b'"))], True),
    ],
    ids=["two boxes", "one box", "two trials", "another place", "another error", "folder and message differ"],
)
def test_only_the_same_bug_on_three_trials_of_two_boxes_pauses(
    study: optuna.Study, failures: list[tuple[str, str]], is_paused: bool
) -> None:
    for worker, trace in failures:
        fail(study, worker, trace)
    assert (pause_reason(study) is not None) == is_paused


def test_study_that_goes_on_anyway_is_not_resumed(study: optuna.Study) -> None:
    with pytest.raises(InputError, match="study study is not paused"):
        resume(study)


def test_bugs_from_before_a_resume_do_not_count(study: optuna.Study) -> None:
    for box in ("one", "two", "three"):
        fail(study, f"{box}:1", TRACE)
    resume(study)
    fail(study, "four:1", TRACE)
    fail(study, "five:1", TRACE)
    assert pause_reason(study) is None
    fail(study, "five:2", TRACE)
    assert pause_reason(study) is not None
