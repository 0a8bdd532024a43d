"""Workers killed again and again, or stopped at a bad moment: the record of a study stays whole, and nobody is left."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL

from storage.engine import parse_url
from storage.native import PostgresStorage

REPOSITORY = Path(__file__).parents[2]
KILL_EVERY_S = 0.5
POLL_S = 0.1
PROCESSES = multiprocessing.get_context("forkserver")  # loads the libraries once
PROCESSES.set_forkserver_preload(["alembic.command", "psycopg2", "optuna", "storage.native"])


def work(url: str, budget: int, step_s: float) -> None:
    """The loop of a worker without its trainer; a trial lasts three steps of at most `step_s`."""
    storage = open_storage(parse_url(url))
    study = optuna.load_study(study_name="study", storage=storage, sampler=optuna.samplers.RandomSampler())
    with Claims(parse_url(url), study) as claims:
        while claims.counts()["finished"] < budget:
            trial = claims.claim(budget)
            if trial is None:
                time.sleep(POLL_S)
                continue
            x = trial.suggest_float("x", 0, 1)
            for step in (1, 2, 3):
                time.sleep(step_s * x)
                trial.report(x + step, step)
            study.tell(trial, x)
            claims.release(trial)


def harass(url: URL, *, workers: int, budget: int, step_s: float, seconds: float) -> list[int | None]:
    """Kills a worker every half second for so long, and starts another in its place; all exit codes."""
    rng = random.Random(0)
    arguments = (url.render_as_string(hide_password=False), budget, step_s)
    crew = [PROCESSES.Process(target=work, args=arguments) for _ in range(workers)]
    for process in crew:
        process.start()
    until = time.monotonic() + seconds
    while alive := [process for process in crew if process.is_alive()]:
        finished = wait([process.sentinel for process in alive], timeout=KILL_EVERY_S)
        if time.monotonic() < until and not finished:
            rng.choice(alive).kill()
            crew.append(PROCESSES.Process(target=work, args=arguments))
            crew[-1].start()
    return [process.exitcode for process in crew]


def study_after(url: URL, *, workers: int, budget: int, step_s: float, seconds: float) -> list[int | None]:
    """Exit codes, once the record of the study is found to be whole."""
    study = optuna.create_study(study_name="study", storage=open_storage(url), direction="maximize")
    study.enqueue_trial({"x": 0.5})
    codes = harass(url, workers=workers, budget=budget, step_s=step_s, seconds=seconds)
    trials = study.get_trials()
    assert [trial.number for trial in trials] == list(range(budget))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert [trial.value for trial in trials] == [trial.params["x"] for trial in trials]
    for trial in trials:
        assert trial.intermediate_values == {step: trial.params["x"] + step for step in (1, 2, 3)}
    return codes


def test_four_workers_with_one_killed_every_half_second_record_exactly_forty_trials(database: URL) -> None:
    codes = study_after(database, workers=4, budget=40, step_s=0.4, seconds=8)
    assert set(codes) == {0, -9}
    assert codes.count(-9) >= 5


def test_ctrl_c_while_the_workers_are_started_leaves_none_of_them(
    database: URL, study_yaml: Path, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    os.mkfifo(logs / "worker-3.log")  # the third start waits until somebody reads it
    command = [sys.executable, "-m", "hpo", "run", str(study_yaml), "--workers", "3", "-o", str(tmp_path)]
    environment = os.environ | {"HPO_STORAGE": database.render_as_string(hide_password=False)}
    run = psutil.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while len(started := run.children()) < 2:
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    reader = os.open(logs / "worker-3.log", os.O_RDONLY | os.O_NONBLOCK)
    output = run.communicate(timeout=60)[0]
    os.close(reader)
    left = [worker for worker in started if worker.is_running()]
    for worker in left:
        worker.kill()
    assert (run.returncode, left) == (75, []), output


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_eight_workers_harassed_for_three_minutes_record_exactly_two_hundred_trials(database: URL) -> None:
    codes = study_after(database, workers=8, budget=200, step_s=2.0, seconds=180)
    assert set(codes) == {0, -9}
    assert codes.count(-9) >= 100
