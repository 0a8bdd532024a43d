"""The worker's side of the trainer process: start it clean, keep it warm, kill it when told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from objectives.config import TrialConfig

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
OnReport = Callable[[int, float, dict[str, float]], Verdict]


class TrainerDied(Exception):
    """The process ended in the middle of a trial, by itself or by stop()."""


class TrainerProcess:
    """`stopped` is set for good by stop(), which may be called from a signal handler: hence no lock and no Event."""

    def __init__(self) -> None:
        self.stopped = False
        self._process: subprocess.Popen[str] | None = None

    def run(self, config: TrialConfig, on_report: OnReport) -> dict[str, Any]:
        """One trial; returns the message that ended it. Raises TrainerDied."""
        if self._process is None or self._process.poll() is not None:
            self._process = _start()
        process = self._process
        try:
            if self.stopped:  # a signal that came while it started found nothing to kill
                raise EOFError
            _send(process, config.model_dump(mode="json"))
            while True:
                message = _receive(process)
                if message["event"] != "report":
                    return message
                _send(process, on_report(message["step"], message["epoch"], message["scores"]))
        except (BrokenPipeError, EOFError):
            process.kill()
            self._process = None
            raise TrainerDied(f"the trainer process ended with code {process.wait()}") from None

    def stop(self) -> None:
        self.stopped = True
        self.interrupt()

    def interrupt(self) -> None:
        """Ends the trial in hand, if any; the next one gets a new process."""
        if (process := self._process) is not None:
            process.kill()


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
