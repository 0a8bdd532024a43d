"""Workers killed again and again, or at a bad moment: the record of a study stays whole, and nobody is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL

from storage.connection import Connection
from tests.chaos.crew import Crew, check_record, make_crew, query

REPOSITORY = Path(__file__).parents[2]
CALLS = ("claim", "flush", "tell", "keep", "read")
PHASES = ("before", "sent", "answered")
POINTS = [
    *((call, phase, 1) for call in CALLS for phase in PHASES),
    *(("report", phase, 2) for phase in PHASES),
    ("tell", "answered", 2),
    ("claim", "sent", 2),
]
TRIALS_OF_POINT = 4


def harass(crew: Crew, *, every_s: float, share: float, seconds: float, seed: int) -> None:
    """Kills a share of the workers every so often, and starts as many in their place, for so long."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    while time.monotonic() < until and (alive := crew.alive()):
        wait([process.sentinel for process in alive], timeout=every_s)
        victims = rng.sample(alive, k=max(1, round(share * len(alive))))
        for process in victims:
            process.kill()
        if any(process.exitcode == 0 for process in crew.processes):
            return  # the study is finished: whoever starts now has nothing to do
        crew.start(len(victims))


def test_four_workers_of_whom_half_are_killed_every_second_record_exactly_sixty_trials(
    database: URL, tmp_path: Path
) -> None:
    crew = make_crew(database, tmp_path, trials=60, step_s=0.1)
    crew.start(4)
    harass(crew, every_s=1.0, share=0.5, seconds=12, seed=0)
    codes = crew.join()
    assert set(codes) == {0, -9}
    assert codes.count(-9) >= 8
    check_record(database, crew, trials=60, may_fail=True)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(5))
def test_eight_workers_of_whom_half_are_killed_every_five_seconds_record_exactly_two_hundred_trials(
    database: URL, tmp_path: Path, seed: int
) -> None:
    crew = make_crew(database, tmp_path, trials=200, lease_s=5, step_s=2.0)
    crew.start(8)
    harass(crew, every_s=5.0, share=0.5, seconds=180, seed=seed)
    ended = time.monotonic()
    while query(
        database,
        "SELECT count(*) FROM trials t JOIN incident_hpo.leases USING (trial_id) WHERE state = 'RUNNING' AND"
        " expires < clock_timestamp() - interval '5 s'",
    ) != [(0,)]:
        assert time.monotonic() - ended < 30
    assert set(crew.join(300)) == {0, -9}
    check_record(database, crew, trials=200, may_fail=True)


def test_worker_killed_at_any_named_point_loses_nothing_and_leaves_nothing_running(
    database: URL, tmp_path: Path
) -> None:
    crews = {}
    for point in POINTS:
        name = "-".join(map(str, point))
        crews[name] = make_crew(database, tmp_path, name=name, trials=TRIALS_OF_POINT)
        crews[name].start(die_at=point)
    for name, crew in crews.items():
        crew.processes[0].join(60)
        assert crew.processes[0].exitcode == -9, name
    for crew in crews.values():
        crew.start()
    for name, crew in crews.items():
        assert crew.join() == [-9, 0], name
        check_record(database, crew, trials=TRIALS_OF_POINT)


def test_worker_and_server_process_killed_inside_a_sweep_leave_it_to_the_next(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=2)
    crew.start(die_at=("flush", "answered", 1))
    crew.processes[0].join(60)
    # The sweep's first change waits for a lock that this test holds.
    query(
        database,
        "CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END'",
    )
    query(
        database,
        "CREATE TRIGGER hold BEFORE UPDATE ON incident_hpo.leases FOR EACH ROW WHEN (OLD.held AND NOT NEW.held)"
        " EXECUTE FUNCTION public.hold()",
    )
    lock = Connection(database)
    lock.run("SELECT pg_advisory_lock(7)")
    crew.start()
    blocked = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE '%incident_hpo.%'"
    while not (pids := query(database, blocked)):
        assert crew.processes[1].is_alive()
    crew.processes[1].kill()
    query(database, "SELECT pg_terminate_backend(%s)", pids[0][0])
    query(database, "DROP TRIGGER hold ON incident_hpo.leases")
    lock.close()
    crew.start()
    assert crew.join() == [-9, -9, 0]
    assert check_record(database, crew, trials=2)[0].state == TrialState.COMPLETE


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
