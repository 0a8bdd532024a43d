"""Workers that stop for a while and come back, and clocks that nobody can trust."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sqlalchemy import URL

from tests.chaos.crew import Crew, check_record, make_crew, query

DAY_S = 86_400.0
ZONES = ("Asia/Tokyo", "America/Los_Angeles", "Europe/Berlin", "Pacific/Kiritimati", "America/St_Johns", "UTC")
LEASES_HELD = "SELECT count(*) FROM incident_hpo.leases WHERE held"


def pause_one(crew: Crew, rng: random.Random, seconds: float) -> None:
    """One worker stands still for so long while the others go on."""
    pid = rng.choice(crew.alive()).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)  # the fault itself
    os.kill(pid, signal.SIGCONT)


def pause_again_and_again(url: URL, folder: Path, *, times: int, trials: int, step_s: float) -> None:
    crew = make_crew(url, folder, trials=trials, step_s=step_s)
    crew.start(3)
    rng = random.Random(0)
    while query(url, LEASES_HELD) != [(3,)]:
        assert len(crew.alive()) == 3
    for _ in range(times):
        pause_one(crew, rng, 3.5)
    assert crew.join(300) == [0, 0, 0]
    taken_over = query(url, "SELECT count(*) FROM incident_hpo.leases WHERE attempts > 1")[0][0]
    assert taken_over >= times // 2
    check_record(url, crew, trials=trials, may_fail=True)


def test_worker_that_slept_for_three_leases_writes_nothing_more_of_its_trial_and_goes_on(
    database: URL, tmp_path: Path
) -> None:
    pause_again_and_again(database, tmp_path, times=2, trials=24, step_s=0.3)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_worker_that_slept_for_three_leases_fifty_times(database: URL, tmp_path: Path) -> None:
    pause_again_and_again(database, tmp_path, times=50, trials=500, step_s=0.3)


def test_no_live_trial_is_taken_from_workers_in_six_time_zones_with_clocks_a_day_off(
    database: URL, tmp_path: Path
) -> None:
    query(database, f"ALTER DATABASE {database.database} SET timezone = 'Asia/Kathmandu'")
    crew = make_crew(database, tmp_path, trials=18, step_s=1.0)
    for number, zone in enumerate(ZONES):
        environment = (("TZ", zone), ("PGTZ", zone))
        crew.start(environment=environment, clock_off_s=(-1, 0, 1)[number % 3] * DAY_S)
    assert crew.join() == [0] * len(ZONES)
    found = check_record(database, crew, trials=18)
    assert query(database, "SELECT max(attempts) FROM incident_hpo.leases") == [(1,)]
    assert {trial.state for trial in found} == {TrialState.COMPLETE}
    durations = [trial.duration.total_seconds() for trial in found if trial.duration]
    assert 3 <= min(durations) <= max(durations) < 60
