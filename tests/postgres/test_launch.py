"""`hpo launch`: an agent for each GPU, started again when it was cut short, all gone in time when told to stop."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy import URL

from hpo.errors import InputError
from hpo.launch import choose_slots
from hpo.launcher import FIRST_DELAY_S, LONGEST_DELAY_S, MAX_FALLS, Agent, Slot, _explain, _tend
from storage.native import PostgresStorage
from storage.workers import WorkerRow, list_workers
from tests.chaos.crew import make_crew
from tests.postgres.conftest import Query, Run, Start
from tests.stub_trainer import write_stub

DEADLINE_S = 60.0
GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}  # pretended: the trainer is a stub


def wait_until(url: URL, holds: Callable[[list[WorkerRow]], bool]) -> list[WorkerRow]:
    storage, deadline = PostgresStorage(url), time.monotonic() + DEADLINE_S
    while not holds(found := list_workers(storage.ask)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    storage.remove_session()
    return found


def all_at_work(found: list[WorkerRow]) -> bool:
    return len(found) == 4 and all(row.trial is not None and not row.ended for row in found)


def visible_to_trainers(launch: psutil.Process) -> list[str]:
    """What each of four trainers has as CUDA_VISIBLE_DEVICES, once they run: a trial is claimed a moment before."""
    deadline = time.monotonic() + DEADLINE_S
    while len(found := [child for child in launch.children(recursive=True) if is_trainer(child)]) != 4:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return sorted(trainer.environ()["CUDA_VISIBLE_DEVICES"] for trainer in found)


def is_trainer(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # gone since it was listed
        return "objectives.trainer" in process.cmdline()
    return False


def test_four_devices_have_an_agent_each_that_comes_back_when_killed_and_all_drain_in_time(
    database: URL, tmp_path: Path, start: Start, query: Query
) -> None:
    make_crew(database, tmp_path, trials=1000, lease_s=3.0)
    stub = write_stub(tmp_path / "stub", steps=100, step_s=0.2)
    launched = start(database, "-m", "hpo", "launch", "study", "-o", tmp_path / "out", **GPUS, **stub)
    found = wait_until(database, all_at_work)
    assert [row.device for row in found] == [row.slot for row in found] == ["gpu 0", "gpu 1", "gpu 2", "gpu 3"]
    process = psutil.Process(launched.pid)
    assert visible_to_trainers(process) == ["0", "1", "2", "3"]
    psutil.Process(int(found[2].worker.rpartition(":")[2])).kill()
    found = wait_until(database, lambda found: all_at_work(found) and found[2].starts == 2)
    assert [row.starts for row in found] == [1, 1, 2, 1]
    assert visible_to_trainers(process) == ["0", "1", "2", "3"]
    running = "SELECT count(*) FROM public.trials WHERE state = 'RUNNING'"
    wait_until(database, lambda _: query(database, running) == [(4,)])  # the lease of the killed one has run out
    descendants, told = process.children(recursive=True), time.monotonic()
    launched.send_signal(signal.SIGTERM)
    output = launched.communicate(timeout=DEADLINE_S)[0]
    assert (launched.returncode, time.monotonic() - told < 15.0) == (0, True), output
    assert "hpo: worker on gpu 2 was killed by signal 9; again in 1 s\n" in output
    assert not [child for child in descendants if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert query(database, running) == [(0,)]
    assert len(list((tmp_path / "out" / "logs").glob("*/worker-[1-4].log"))) == 4


def test_study_is_finished_with_a_line_for_each_trial(database: URL, tmp_path: Path, start: Start) -> None:
    make_crew(database, tmp_path, trials=6)
    stub = write_stub(tmp_path / "stub", steps=3, step_s=0.01)
    arguments = ("-m", "hpo", "launch", "study", "--workers", "2", "-o", tmp_path / "out")
    launched = start(database, *arguments, CUDA_VISIBLE_DEVICES="", **stub)
    output = launched.communicate(timeout=DEADLINE_S)[0]
    assert launched.returncode == 0, output
    lines = [line for line in output.splitlines() if line.startswith("trial ")]
    assert sorted(int(line.split()[1]) for line in lines) == list(range(6)), output
    assert all("complete" in line and "0.5000" in line for line in lines), output


def test_gpu_of_another_study_is_refused_until_it_is_to_be_shared(
    database: URL, tmp_path: Path, start: Start, hpo: Run
) -> None:
    for name in ("first", "second"):
        make_crew(database, tmp_path, name=name, trials=1000, lease_s=3.0)
    stub = write_stub(tmp_path / "stub", steps=100, step_s=0.2)
    one = start(database, "-m", "hpo", "launch", "first", "--gpus", "1", "-o", tmp_path / "1", **GPUS, **stub)
    wait_until(database, lambda found: any(row.trial is not None for row in found))
    arguments = ("-m", "hpo", "launch", "second", "--gpus", "0,1", "-o", tmp_path / "2")
    refused = start(database, *arguments, **GPUS, **stub)
    output = refused.communicate(timeout=DEADLINE_S)[0]
    assert (refused.returncode, output.splitlines()[-1]) == (
        2,
        "hpo: gpu 1 is at work for study 'first'; take another (--gpus), or let both have it: --share-gpu",
    )
    shared = start(database, *arguments, "--share-gpu", **GPUS, **stub)
    found = wait_until(database, lambda found: sum(row.trial is not None for row in found) == 3)
    assert [(row.study, row.device) for row in found] == [("first", "gpu 1"), ("second", "gpu 0"), ("second", "gpu 1")]
    for process in (one, shared):
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


def test_drained_box_ends_its_launch_with_0(database: URL, tmp_path: Path, start: Start, hpo: Run) -> None:
    make_crew(database, tmp_path, trials=1000, lease_s=3.0)
    stub = write_stub(tmp_path / "stub", steps=100, step_s=0.2)
    launched = start(database, "-m", "hpo", "launch", "study", "-o", tmp_path / "out", **GPUS, **stub)
    host = wait_until(database, all_at_work)[0].host
    assert hpo(database, "workers", "drain", host).returncode == 0
    output = launched.communicate(timeout=DEADLINE_S)[0]
    assert launched.returncode == 0, output


def test_worker_whose_terminal_is_closed_gives_its_trial_back(
    database: URL, tmp_path: Path, start: Start, query: Query
) -> None:
    make_crew(database, tmp_path, trials=1000, lease_s=60.0)
    stub = write_stub(tmp_path / "stub", steps=100, step_s=0.2)
    worker = start(database, "-m", "hpo", "worker", "study", CUDA_VISIBLE_DEVICES="", **stub)
    wait_until(database, lambda found: any(row.trial is not None for row in found))
    worker.send_signal(signal.SIGHUP)
    output = worker.communicate(timeout=DEADLINE_S)[0]
    assert (worker.returncode, query(database, "SELECT count(*) FROM trials WHERE state = 'RUNNING'")) == (
        75,
        [(0,)],
    ), output


def test_workers_end_with_a_launch_that_was_killed(database: URL, tmp_path: Path, start: Start) -> None:
    make_crew(database, tmp_path, trials=1000, lease_s=3.0)
    stub = write_stub(tmp_path / "stub", steps=100, step_s=0.2)
    launched = start(database, "-m", "hpo", "launch", "study", "-o", tmp_path / "out", **GPUS, **stub)
    wait_until(database, all_at_work)
    workers = psutil.Process(launched.pid).children()
    launched.kill()
    assert not psutil.wait_procs(workers, timeout=15.0)[1]


def ended_with(code: int, agent: Agent) -> float | None:
    """One life of a worker that ends so; in how many seconds it is started again, None: never."""
    agent.due = 0.0
    _tend(agent, lambda _: subprocess.Popen(["sh", "-c", f"exit {code}" if code >= 0 else f"kill {code} $$"]))
    assert agent.process is not None
    agent.process.wait()
    _tend(agent, lambda _: pytest.fail("started again at once"))
    return None if agent.code is not None else agent.due - time.monotonic()


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    (tmp_path / "log").touch()
    return Agent(Slot("gpu 0", "0"), tmp_path / "log")


@pytest.mark.parametrize("code", [0, 1, 2, 78])
def test_worker_that_another_start_would_not_help_is_not_started_again(
    agent: Agent, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.log.write_text("hpo: gpu 0 is taken\n")
    assert ended_with(code, agent) is None
    said = f"hpo: worker on gpu 0 ended with code {code}, for good: gpu 0 is taken\n" if code else ""
    assert (agent.code, capsys.readouterr().err) == (code, said)


def test_launch_whose_workers_all_refuse_their_input_ends_with_2(tmp_path: Path) -> None:
    agents = [Agent(Slot(f"gpu {gpu}", gpu), tmp_path / gpu, code=2) for gpu in ("0", "1")]
    for agent in agents:
        agent.log.write_text("hpo: gpu 0 is at work for study 'first'\n")
    with pytest.raises(InputError, match=r"^gpu 0 is at work for study 'first'$"):
        _explain(agents, tmp_path)


@pytest.mark.parametrize("code", [75, 70, 3, -9, -11])
def test_worker_that_was_cut_short_is_started_again_later_each_time_up_to_a_limit(agent: Agent, code: int) -> None:
    delays = [ended_with(code, agent) for _ in range(MAX_FALLS)]
    expected = [min(FIRST_DELAY_S * 2**fall, LONGEST_DELAY_S) for fall in range(MAX_FALLS)]
    assert delays == [pytest.approx(delay_s, abs=0.5) for delay_s in expected]
    assert ended_with(code, agent) is None


def test_worker_that_had_been_steady_begins_with_the_first_delay(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        ended_with(75, agent)
    monkeypatch.setattr("hpo.launcher.STEADY_S", -1.0)
    assert ended_with(75, agent) == pytest.approx(FIRST_DELAY_S, abs=0.5)


def test_options_that_contradict_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="give one of them"):
        choose_slots(None, 2, 3)
    with pytest.raises(InputError, match="--per-gpu needs a GPU"):
        choose_slots(None, 2, None)
