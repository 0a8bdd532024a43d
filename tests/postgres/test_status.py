"""`hpo status`, piped and as JSON: each recorded trial once, numbers that are finite, an outage that passes."""

from __future__ import annotations

import json
import math
import re
import signal
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL

import hpo.live
from hpo.config import StudyFile
from hpo.live import Lines, trial_line
from hpo.status import Snapshot, compare, take_snapshot
from hpo.study import open_study
from objectives.evaluation import METRICS
from storage import terms
from storage.engine import open_rdb_storage
from storage.native import PostgresStorage
from storage.workers import Place, leave, register
from tests.chaos.crew import make_crew
from tests.postgres.conftest import Query, Run, Start

TIMEOUT_S = 60.0
BEGAN = datetime(2026, 1, 2, 3, 4, 5)
KIND: dict[str, BaseDistribution] = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
RECORDED = "SELECT number FROM trials WHERE state NOT IN ('RUNNING', 'WAITING') ORDER BY datetime_complete"
LINE = re.compile(r"trial +(\d+)  (complete|pruned|infeasible|failed) +(-|0\.\d{4}) +(-|[\d.]+ s)  \S+( \S.*)?")

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "status.md").read_text()

Found = tuple[optuna.Study, StudyFile]


@pytest.fixture
def study(database: URL, tmp_path: Path) -> Found:
    """Of a hundred trials, nobody at work."""
    return make_study(database, tmp_path, trials=100, lease_s=30.0)


def make_study(database: URL, folder: Path, **options: Any) -> Found:
    make_crew(database, folder, **options)
    return open_study(PostgresStorage(database), "study")


def add(study: optuna.Study, state: TrialState, value: float | None = None, *, at_s: float = 0, **found: Any) -> None:
    """A trial that took ten seconds and ended `at_s` after the others' beginning."""
    scores = dict[str, Any](dict.fromkeys(METRICS, value))
    scores = scores | {"untrained": scores, "ceilings": scores, "intervals": dict.fromkeys(METRICS, (0.0, 1.0))}
    trial = create_trial(
        state=state,
        value=value,
        params={"learning_rate": 1e-3},
        distributions=KIND,
        user_attrs={"worker": "box:1"} | (scores if state == TrialState.COMPLETE else {}) | found,
        intermediate_values={1000: 0.125},
    )
    trial.datetime_start = BEGAN + timedelta(seconds=at_s - 10)
    trial.datetime_complete = BEGAN + timedelta(seconds=at_s)
    study._storage.create_new_trial(study._study_id, trial)


def claim(study: optuna.Study, worker: str, slot: str = "gpu 0", **found: Any) -> FrozenTrial:
    """A trial that a registered worker runs."""
    storage = PostgresStorage(study._storage._url)  # type: ignore[attr-defined]
    register(storage.ask, worker, study._study_id, Place(worker.partition(":")[0], slot, slot, None))
    trial_id = storage.claim(study._study_id, worker).trial_id
    assert trial_id is not None
    for name, value in found.items():
        storage.set_trial_user_attr(trial_id, name, value)
    storage.flush(trial_id)
    return storage.get_trial(trial_id)


def test_json_tells_of_workers_running_trials_and_failures(study: Found, database: URL, hpo: Run) -> None:
    one, _ = study
    add(one, TrialState.COMPLETE, 0.5, baseline="base")
    add(one, TrialState.PRUNED, reason="OutOfMemory", message="20 GiB", at_s=1)
    add(one, TrialState.FAIL, trace="/opt/training.py:9 step\nKeyError: 'x'", at_s=2)
    trial = claim(one, "box:7", planned_examples=4000)
    storage = PostgresStorage(database)
    for step, value in ((2000, 0.25), (1000, 0.125), (3000, math.nan)):
        open_rdb_storage(database).set_trial_intermediate_value(trial._trial_id, step, value)
    register(storage.ask, "box:8", one._study_id, Place("box", "gpu 1", "gpu 1", None))
    leave(storage.ask, "box:8", 78)
    ended = hpo(database, "status", "study", "--json")
    found = json.loads(ended.stdout, parse_constant=pytest.fail)
    counts = ("complete", "pruned", "infeasible", "failed", "running")
    assert [found[count] for count in counts] == [1] * len(counts)
    assert (found["best_trial"], found["best_spearman"], found["best_baseline"]) == (1, 0.5, "base")
    assert [(row["worker"], row["state"], row["trial"]) for row in found["workers"]] == [
        ("box:7", f"trial {trial.number}", trial.number),
        ("box:8", "ended: broken set-up (78)", None),
    ]
    assert all(f"`{key}`" in DOCUMENTED for key in found)
    (run,) = found["running_trials"]
    assert all(f"`{key}`" in DOCUMENTED for key in [*run, *found["workers"][0], *found["failures"][0]])
    assert run == {
        "trial": trial.number,
        "baseline": "base",
        "worker": "box:7",
        "attempt": 1,
        "planned_examples": 4000,
        "examples": 2000,
        "spearman": 0.25,
        "curve": [[1000, 0.125], [2000, 0.25]],
    }
    assert [(failure["trial"], failure["kind"], failure["reason"]) for failure in found["failures"]] == [
        (2, "infeasible", "out of memory: 20 GiB"),
        (3, "failed", "KeyError: 'x'"),
    ]


def test_trial_that_was_cut_short_is_told_until_it_runs_again(study: Found, database: URL, hpo: Run) -> None:
    storage = PostgresStorage(database)
    trial_id = storage.claim(study[0]._study_id, "box:7").trial_id
    assert trial_id is not None
    storage.release(trial_id, reason="its trainer died")
    (waiting,) = json.loads(hpo(database, "status", "study", "--json").stdout)["given_back"]
    assert waiting == {"trial": 0, "worker": "box:7", "attempts": 1}
    assert "trial 0 was given back by box and waits for attempt 2" in hpo(database, "status", "study").stdout
    claim(study[0], "box:9")
    found = take_snapshot(*study)
    assert (found.given_back, [run.attempt for run in found.runs]) == ((), [2])


def test_trial_of_a_notebook_is_shown_without_a_worker(study: Found, database: URL, hpo: Run) -> None:
    trial = optuna.load_study(study_name="study", storage=open_rdb_storage(database)).ask()
    trial.report(0.25, 100)
    line = next(line for line in hpo(database, "status", "study").stdout.splitlines() if "no worker" in line)
    assert line.split()[:3] == ["no", "worker", str(trial.number)]
    assert line.split()[-1] == "0.2500"


def make_known_again(study: Found) -> Found:
    """As another process sees it."""
    return open_study(PostgresStorage(study[0]._storage._url), "study")  # type: ignore[attr-defined]


def left_s(study: Found) -> float | None:
    return take_snapshot(*study).time_left_s


def test_baseline_told_by_a_notebook_is_not_compared(study: Found, database: URL, hpo: Run) -> None:
    one, file = study
    notebook = optuna.load_study(study_name="study", storage=open_rdb_storage(database))
    notebook.tell(notebook.ask(), 0.7)  # it got the baseline that waited
    add(one, TrialState.COMPLETE, 0.5)
    assert [row.baselines for row in compare(take_snapshot(one, file), file)] == [{}] * len(METRICS)
    done = hpo(database, "status", "study")
    assert done.returncode == 0, done.stdout


def test_time_left_counts_workers_that_have_only_just_begun(study: Found) -> None:
    """Ninety trials of ten seconds: with nobody there is no telling, with nine workers they take a hundred seconds."""
    for number in range(10):
        add(study[0], TrialState.COMPLETE, 0.5, at_s=10 * number)
    assert left_s(study) is None
    claim(study[0], "box:1")
    assert left_s(study) == pytest.approx(900, abs=5)
    storage = PostgresStorage(study[0]._storage._url)  # type: ignore[attr-defined]
    for number in range(2, 10):
        register(storage.ask, f"box:{number}", study[0]._study_id, Place("box", f"gpu {number}", "gpu", None))
    assert left_s(study) == pytest.approx(100, abs=5)
    leave(storage.ask, "box:9", 1)
    assert left_s(study) == pytest.approx(900 / 8, abs=5)


@pytest.mark.parametrize(
    ("budget", "expected"), [({"hours": 0.1}, 360), ({"gpu_hours": 0.05}, 180), ({"hours": 9}, 900)]
)
def test_time_left_is_the_smaller_of_what_trials_and_hours_allow(
    database: URL, tmp_path: Path, budget: dict[str, float], expected: float
) -> None:
    study = make_study(database, tmp_path, trials=100, budget=budget)
    for number in range(10):
        add(study[0], TrialState.COMPLETE, 0.5, at_s=10 * number)
    claim(study[0], "box:1")
    assert left_s(study) == pytest.approx(expected, abs=5)


@pytest.mark.parametrize(
    ("found", "expected"), [({"baseline": "base"}, 180), ({}, 180), ({"planned_examples": None}, 0)]
)
def test_time_left_waits_for_the_plan_of_a_trial_that_has_lasted_longer_than_others(
    database: URL, tmp_path: Path, query: Query, found: dict[str, Any], expected: float
) -> None:
    """A minute for a quarter of it, where the others took ten seconds; nothing else is left to do."""
    study = make_study(database, tmp_path, trials=2, lease_s=30.0)
    add(study[0], TrialState.COMPLETE, 0.5)
    trial = claim(study[0], "box:1", **({"planned_examples": 4000} | found))
    open_rdb_storage(database).set_trial_intermediate_value(trial._trial_id, 1000, 0.25)
    minute_ago = "timezone('UTC', now()) - interval '60 s'"
    query(database, f"UPDATE trials SET datetime_start = {minute_ago} WHERE state = 'RUNNING'")
    assert left_s(make_known_again(study)) == pytest.approx(expected, abs=15)


def test_paused_study_has_no_time_left(study: Found, database: URL) -> None:
    add(study[0], TrialState.COMPLETE, 0.5)
    claim(study[0], "box:1")
    assert left_s(study) is not None
    terms.pause(PostgresStorage(database).ask, study[0]._study_id)
    assert left_s(study) is None


def numbers_of(lines: list[str]) -> list[int]:
    return [int(found[1]) for line in lines if (found := LINE.fullmatch(line))]


def test_piped_watch_has_a_line_for_each_trial_once_in_the_order_recorded(
    database: URL, tmp_path: Path, start: Start, query: Query
) -> None:
    """Those from before it began, and those since; control characters never, whatever the environment wants."""
    crew = make_crew(database, tmp_path, trials=14, step_s=0.2)
    study, _ = open_study(PostgresStorage(database), "study")
    for at_s in (20, 10, 30):
        add(study, TrialState.PRUNED, at_s=at_s)
    watching = start(database, "-m", "hpo", "status", "study", "--watch", FORCE_COLOR="1", TTY_INTERACTIVE="1")
    assert watching.stdout
    output = ""
    while not output.endswith("study: 3/14 trials, 0 running, 3 pruned\n"):
        output += watching.stdout.readline()
    assert numbers_of(output.splitlines()) == [2, 1, 3]
    crew.start(2)
    assert crew.join() == [0, 0]
    output += watching.communicate(timeout=TIMEOUT_S)[0]
    assert watching.returncode == 0, output
    assert all(letter.isprintable() for line in output.splitlines() for letter in line)
    assert [(number,) for number in numbers_of(output.splitlines())] == query(database, RECORDED)
    others = [line for line in output.splitlines() if line and not LINE.fullmatch(line)]
    assert others[1] == "study: 14/14 trials, 0 running, 3 pruned", output  # and perhaps a worker that is just leaving


def test_lines_say_how_far_the_study_is_once_a_minute_at_most(
    study: Found, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(study[0])

    def printed() -> list[str]:
        lines.show(take_snapshot(*study))
        return [line for line in capsys.readouterr().out.splitlines() if not LINE.fullmatch(line)]

    assert printed() == ["study: 0/100 trials, 0 running"]
    add(study[0], TrialState.COMPLETE, 0.5)
    assert printed() == []
    monkeypatch.setattr(hpo.live, "STATUS_S", 0.0)
    assert printed() == ["study: 1/100 trials, 0 running, best 0.5000 (trial 1)"]
    assert printed() == []  # nothing new


def test_lines_leave_out_trials_that_were_told_of_before(study: Found, capsys: pytest.CaptureFixture[str]) -> None:
    """As those of an earlier `hpo run`."""
    for _ in range(3):
        add(study[0], TrialState.COMPLETE, 0.5)
    lines = Lines(study[0], told={1, 3})
    for expected in ([2], []):
        lines.show(take_snapshot(*study))
        assert numbers_of(capsys.readouterr().out.splitlines()) == expected


def test_line_of_a_trial_says_where_it_ran_and_why_it_failed(study: Found, database: URL) -> None:
    add(study[0], TrialState.COMPLETE, 0.5)
    add(study[0], TrialState.FAIL, trace="/opt/training.py:9 step\nKeyError: 'x'", worker="gone:1")
    add(study[0], TrialState.PRUNED, reason="Diverged", message="nan\n at 3")
    storage = PostgresStorage(database)
    register(storage.ask, "box:1", study[0]._study_id, Place("box", "gpu 0.2", "gpu 0", None))
    found = take_snapshot(*study)
    places = {"box:1": ("gpu 0.2", "gpu 0")}
    finished = [trial for trial in found.trials if trial.state.is_finished()]
    assert [trial_line(trial, places) for trial in finished] == [
        "trial    1  complete     0.5000     10.0 s  box gpu 0.2",
        "trial    2  failed            -     10.0 s  gone  KeyError: 'x'",
        "trial    3  infeasible        -     10.0 s  box gpu 0.2  loss or gradients were not finite: nan  at 3",
    ]


def test_watch_waits_for_a_database_that_is_away_and_goes_on(
    study: Found, database: URL, start: Start, query: Query, server_url: URL
) -> None:
    watching = start(database, "-m", "hpo", "status", "study", "--watch")
    assert watching.stdout
    assert watching.stdout.readline() == "study: 0/100 trials, 0 running\n"
    query(server_url, f"ALTER DATABASE {database.database} ALLOW_CONNECTIONS false")
    query(server_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", database.database)
    assert re.match(r"\d\d:\d\d:\d\d the database is away: PostgreSQL at ", watching.stdout.readline())
    query(server_url, f"ALTER DATABASE {database.database} ALLOW_CONNECTIONS true")
    assert re.match(r"\d\d:\d\d:\d\d the database is back\n", watching.stdout.readline())
    add(study[0], TrialState.COMPLETE, 0.5)
    assert LINE.fullmatch(watching.stdout.readline().rstrip())
    watching.send_signal(signal.SIGINT)
    output = watching.communicate(timeout=TIMEOUT_S)[0]
    assert watching.returncode == 0, output
    assert output.startswith("study: 1/100 trials, 0 running, best 0.5000 (trial 1)\n")


def test_watched_study_that_is_deleted_ends_with_a_sentence(study: Found, database: URL, start: Start) -> None:
    watching = start(database, "-m", "hpo", "status", "study", "--watch")
    assert watching.stdout
    assert watching.stdout.readline()
    optuna.delete_study(study_name="study", storage=open_rdb_storage(database))
    assert watching.communicate(timeout=TIMEOUT_S)[0] == (
        "hpo: study 'study' was deleted; there is nothing more to see of it\n"
    )
    assert watching.returncode == 2


def test_watch_ends_by_itself_when_the_study_is_over(database: URL, tmp_path: Path, hpo: Run) -> None:
    study, _ = make_study(database, tmp_path, trials=100)
    terms.end(PostgresStorage(database).ask, study._study_id, "its 2 hours are over")
    ended = hpo(database, "status", "study", "--watch")
    assert (ended.returncode, ended.stdout) == (0, "study: 0/100 trials, 0 running\nended: its 2 hours are over\n")


def test_a_look_at_five_thousand_trials_is_cheap(study: Found, query: Query, database: URL) -> None:
    """Less than a tenth of the time between two looks, with everything that a first look reads known."""
    study_id = study[0]._study_id
    query(
        database,
        "INSERT INTO trials (study_id, number, state, datetime_start, datetime_complete) "
        "SELECT %s, n, 'COMPLETE', now() - interval '9 s', now() FROM generate_series(1, 5000) n",
        study_id,
    )
    for metric in METRICS:
        query(
            database,
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) SELECT trial_id, %s, '0.5' FROM trials",
            metric,
        )
    query(
        database,
        "INSERT INTO trial_values (trial_id, objective, value, value_type) "
        "SELECT trial_id, 0, 0.5, 'FINITE' FROM trials WHERE state = 'COMPLETE'",
    )
    assert isinstance(found := take_snapshot(*study), Snapshot)
    assert found.counts["complete"] == 5000
    before = time.process_time()
    for _ in range(5):
        take_snapshot(*study)
    assert (time.process_time() - before) / 5 < hpo.live.WATCH_S / 10
