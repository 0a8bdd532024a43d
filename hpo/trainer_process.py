"""The worker's side of the trainer process: start it clean, keep it warm, kill it when told."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from hpo.config import Deadlines, Limits
from hpo.errors import SetupError
from hpo.memory import oom_kills
from objectives.config import ALIVE_S, Job

# All that a trainer needs of its environment. No database URL, no secrets: training runs third-party code.
PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_ALLOC_CONF",
    "HF_HOME",
    "HF_HUB_CACHE",
    "XDG_CACHE_HOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # its worker has fetched the model
Verdict = str
OnStart = Callable[[int, int, list[tuple[int, float]]], None]
OnReport = Callable[[int, float, dict[str, float]], Verdict]
STOP_S = 8.0  # from being asked to stop until the trainer is killed
KILL_S = 20.0  # from SIGKILL until the kernel has ended it
SLOWER = 10  # a step so many times as long as the longest before is a hang


class TrainerDied(Exception):
    """The process ended in the middle of a trial, by itself, by interrupt(), or because it hung."""


class TrainerProcess:
    """`stopped` is set for good by stop(), which may be called from a signal handler: hence no lock and no Event."""

    def __init__(self) -> None:
        self.stopped = False
        self.deadlines = Deadlines()
        self.limits = Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._has_begun = False  # to train: from here on there is something to keep

    def run(
        self, job: Job, on_start: OnStart, on_report: OnReport, on_checkpoint: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """One trial; returns the message that ended it. `on_start` gets the examples of the whole plan, and what need
        not be repeated: how many examples, and the steps and scores on the way.

        Raises TrainerDied.
        """
        self._has_begun = False  # before `stopped` is looked at: a signal after that ends this trial at once
        if self._process is None or self._process.poll() is not None:
            self._process, self._received = _start(), b""
        process, kills = self._process, oom_kills()
        try:
            if self.stopped:  # a signal that came while it started found nothing to stop
                raise EOFError
            return self._converse(process, job, on_start, on_report, on_checkpoint)
        except (BrokenPipeError, EOFError):
            self._process = None
            code = _bury(process)
        if code == -signal.SIGKILL and oom_kills() > kills:
            return {"event": "out_of_memory", "message": "the kernel killed the trainer for want of memory"}
        raise TrainerDied(f"the trainer process ended with code {code}")

    def _converse(
        self,
        process: subprocess.Popen[bytes],
        job: Job,
        on_start: OnStart,
        on_report: OnReport,
        on_checkpoint: Callable[[], None],
    ) -> dict[str, Any]:
        _send(process, job.model_dump(mode="json"))
        wait_s, started = self.deadlines.load_s, time.monotonic()
        while True:
            asked = time.monotonic()
            message = self._receive(process, wait_s)
            if message["event"] == "started":
                self._has_begun = True
                on_start(message["planned"], message["examples"], message["curve"])
                wait_s = self.deadlines.idle_s
            elif message["event"] in ("alive", "report", "checkpoint"):
                wait_s = max(wait_s, SLOWER * (time.monotonic() - asked - ALIVE_S))
                if excess := self._excess(process, started):
                    self.discard()
                    return excess
                if message["event"] == "checkpoint":
                    on_checkpoint()
                if message["event"] == "report":
                    _send(process, on_report(message["step"], message["epoch"], message["scores"]))
            else:
                return message

    def _excess(self, process: subprocess.Popen[bytes], started: float) -> dict[str, Any] | None:
        """The end of a trial that is beyond its limits."""
        trial_s, memory_gib = self.limits.trial_s, self.limits.memory_gib
        if trial_s is not None and time.monotonic() - started > trial_s:
            return {"event": "infeasible", "reason": "TimeLimit", "message": f"more than {trial_s:g} s"}
        with suppress(psutil.Error):  # killed meanwhile
            if memory_gib is not None and psutil.Process(process.pid).memory_info().rss > memory_gib * 2**30:
                return {"event": "out_of_memory", "message": f"more than {memory_gib} GiB"}
        return None

    def stop(self) -> None:
        """Asks the trial in hand to stop at a checkpoint; after 8 s, or if it has not begun, the process is killed."""
        self.stopped = True
        if not self._has_begun:
            self.interrupt()
        elif self._process is not None and self._process.stdin is not None:
            with suppress(OSError, ValueError):  # gone, or just closed
                os.write(self._process.stdin.fileno(), b'"stop"\n')
            signal.signal(signal.SIGALRM, lambda *_: self.interrupt())
            signal.setitimer(signal.ITIMER_REAL, STOP_S)

    def interrupt(self) -> None:
        """Ends the trial in hand, if any, without a checkpoint; from any thread or signal handler."""
        if (process := self._process) is not None:
            process.kill()

    def discard(self) -> None:
        """Between trials: the next one gets a new process, and what this one held is free."""
        process, self._process = self._process, None
        if process is not None:
            _bury(process)

    def close(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.discard()

    def _receive(self, process: subprocess.Popen[bytes], wait_s: float) -> dict[str, Any]:
        """Skips what a library prints while it is imported, before the trainer keeps the pipe to itself."""
        assert process.stdout is not None
        deadline = time.monotonic() + wait_s
        while True:
            line, end, rest = self._received.partition(b"\n")
            if end:
                self._received = rest
                if line.startswith(b'{"event"'):
                    message: dict[str, Any] = json.loads(line)
                    return message
            elif select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                if not (more := os.read(process.stdout.fileno(), 65_536)):
                    raise EOFError
                self._received += more
            else:
                self._end_hung(wait_s)

    def _end_hung(self, wait_s: float) -> None:
        self.discard()
        raise TrainerDied(f"the trainer gave no sign of life for {wait_s:.0f} s (deadlines: in the study file)")


def _start() -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "objectives.trainer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment | OFFLINE | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        start_new_session=True,  # Ctrl-C is the worker's to handle
    )


def _send(process: subprocess.Popen[bytes], message: object) -> None:
    """In one write, so that a signal handler's line falls before or after it."""
    assert process.stdin is not None
    os.write(process.stdin.fileno(), json.dumps(message).encode() + b"\n")


def _bury(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. Raises SetupError if the kernel cannot end it, as when a driver hangs."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        return process.wait(KILL_S)
    except subprocess.TimeoutExpired:
        raise SetupError(f"trainer process {process.pid} cannot be killed: its device hangs. Reset the box") from None
