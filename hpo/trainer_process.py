"""The worker's side of the trainer process: start it clean, keep it warm, kill it when told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from objectives.config import Job

# All that a trainer needs of its environment. No database URL, no secrets: training runs third-party code.
PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "PYTHONPATH",
    "VIRTUAL_ENV",
)
Verdict = str
OnStart = Callable[[list[tuple[int, float]]], None]
OnReport = Callable[[int, float, dict[str, float]], Verdict]
STOP_S = 8.0  # from being asked to stop until the trainer is killed


class TrainerDied(Exception):
    """The process ended in the middle of a trial, by itself or by interrupt()."""


class TrainerProcess:
    """`stopped` is set for good by stop(), which may be called from a signal handler: hence no lock and no Event."""

    def __init__(self) -> None:
        self.stopped = False
        self._process: subprocess.Popen[str] | None = None

    def run(self, job: Job, on_start: OnStart, on_report: OnReport) -> dict[str, Any]:
        """One trial; returns the message that ended it. `on_start` gets steps and scores that need no repetition.

        Raises TrainerDied.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = _start()
        process = self._process
        try:
            if self.stopped:  # a signal that came while it started found nothing to stop
                raise EOFError
            _send(process, job.model_dump(mode="json"))
            while True:
                message = _receive(process)
                if message["event"] == "started":
                    on_start(message["curve"])
                elif message["event"] == "report":
                    _send(process, on_report(message["step"], message["epoch"], message["scores"]))
                else:
                    return message
        except (BrokenPipeError, EOFError):
            process.kill()
            self._process = None
            raise TrainerDied(f"the trainer process ended with code {process.wait()}") from None

    def stop(self) -> None:
        """Asks the trial in hand to stop at a checkpoint; after 8 s the process is killed."""
        self.stopped = True
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                # Past the buffer, which the interrupted code may be writing to; a line is one write.
                os.write(self._process.stdin.fileno(), b'"stop"\n')
            signal.signal(signal.SIGALRM, lambda *_: self.interrupt())
            signal.setitimer(signal.ITIMER_REAL, STOP_S)

    def interrupt(self) -> None:
        """Ends the trial in hand, if any, without a checkpoint; the next one gets a new process."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.interrupt()


def _start() -> subprocess.Popen[str]:
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "objectives.trainer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        start_new_session=True,  # Ctrl-C is the worker's to handle
    )


def _send(process: subprocess.Popen[str], message: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def _receive(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Skips what a library prints while it is imported, before the trainer keeps the pipe to itself."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"event"'):
            message: dict[str, Any] = json.loads(line)
            return message
    raise EOFError
