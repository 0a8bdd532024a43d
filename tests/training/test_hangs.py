"""A trainer that no longer answers is ended in time, however it hangs, and the next trial gets a new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hpo import trainer_process
from hpo.config import Deadlines
from hpo.errors import SetupError
from hpo.trainer_process import TrainerDied, TrainerProcess
from objectives.config import Job, TrialConfig

IDLE_S = 2.0
KILL_S = 2.0  # 20 in the service
PATCH = """
import os, signal, time
import objectives.optimization as optimization
step, count = optimization.Optimization.step, 0
def hang(self, ends):
    global count
    count += 1
    if count == 20:
        {hang}
    step(self, ends)
optimization.Optimization.step = hang
"""
HANGS = {
    "sleeps": "time.sleep(10**6)",
    "holds the interpreter": "pow(3, 10**9)",
    "is stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "ignores being asked": "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(10**6)",
}

IN_LONG_FORM = ("sleeps", "ignores being asked")


@pytest.mark.parametrize(
    "hang",
    [
        pytest.param(hang, id=name, marks=[pytest.mark.chaos] if name in IN_LONG_FORM else [])
        for name, hang in HANGS.items()
    ],
)
def test_trainer_that_hangs_is_ended_in_time_and_replaced(
    config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang: str
) -> None:
    monkeypatch.setattr(trainer_process, "KILL_S", KILL_S)
    patch = tmp_path / "sitecustomize.py"  # which Python runs first
    patch.write_text(PATCH.format(hang=hang))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trainer = TrainerProcess()
    trainer.deadlines = Deadlines(idle_s=IDLE_S)
    reported: list[float] = []

    def on_report(step: int, epoch: float, scores: dict[str, float]) -> str:
        reported.append(time.monotonic())
        return "go on"

    job = Job(config=config)
    with pytest.raises(TrainerDied, match="no sign of life for"):
        trainer.run(job, lambda *_: None, on_report)
    assert reported
    assert time.monotonic() - reported[-1] < 10 * IDLE_S + KILL_S + 5
    patch.unlink()
    assert trainer.run(job, lambda *_: None, on_report)["event"] == "result"
    trainer.close()


def test_trainer_that_cannot_be_killed_is_a_broken_setup(monkeypatch: pytest.MonkeyPatch, config: TrialConfig) -> None:
    monkeypatch.setattr(trainer_process, "KILL_S", 0.1)
    trainer = TrainerProcess()
    assert trainer.run(Job(config=config), lambda *_: None, lambda *_: "prune")["event"] == "result"
    process = trainer._process
    assert process
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)  # until it has stopped: it ends itself when its pipe is closed
    with monkeypatch.context() as patch:
        patch.setattr(process, "kill", lambda: None)  # as if a driver held it in the kernel
        with pytest.raises(SetupError, match=f"trainer process {process.pid} cannot be killed"):
            trainer.discard()
    process.kill()
    process.wait()
    trainer.close()


IDLE_AFTER_ONE = """
import os, sys
if "objectives.trainer" in sys.orig_argv:
    sys.stdin.readline()
    for message in ('{"event": "started", "planned": 1, "examples": 0, "curve": []}', '{"event": "result"}'):
        print(message, flush=True)
    sys.stdin.read()
    os._exit(0)
"""


def test_stop_that_comes_as_a_later_trial_is_sent_ends_it_at_once(
    config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(IDLE_AFTER_ONE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trainer, send, job = TrainerProcess(), trainer_process._send, Job(config=config)
    assert trainer.run(job, lambda *_: None, lambda *_: "go on") == {"event": "result"}

    def send_and_stop(process: subprocess.Popen[bytes], message: object) -> None:
        send(process, message)
        trainer.stop()

    monkeypatch.setattr(trainer_process, "_send", send_and_stop)
    started = time.monotonic()
    with pytest.raises(TrainerDied):
        trainer.run(job, lambda *_: None, lambda *_: "go on")
    assert time.monotonic() - started < trainer_process.STOP_S / 2
    trainer.close()


WORKER = """
import sys
from hpo.trainer_process import TrainerProcess
from objectives.config import Job
trainer = TrainerProcess()
job = Job.model_validate_json(sys.argv[1])
trainer.run(job, lambda *_: print(trainer._process.pid, flush=True), lambda *_: "go on")
"""


def test_trainer_in_a_loop_of_c_dies_with_its_worker(config: TrialConfig, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    hang = f"open({str(begun)!r}, 'w').close(); pow(3, 10**9)"
    (tmp_path / "sitecustomize.py").write_text(PATCH.format(hang=hang))
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, Job(config=config).model_dump_json()],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    with worker:
        assert worker.stdout
        trainer = psutil.Process(int(worker.stdout.readline()))
        while not begun.exists():
            assert trainer.is_running()
        worker.kill()
        trainer.wait(10)
