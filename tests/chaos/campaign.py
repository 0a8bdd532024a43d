"""Studies for real workers with real trainers, whose every optimizer step is noted in a ledger, and slowed down."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import URL

from hpo.study import create_study
from hpo.study_file import read_study_file
from storage.native import PostgresStorage

REPOSITORY = Path(__file__).parents[2]
FINISH_TIMEOUT_S = 600
BATCH = 8
# Every trial falls into the sampler's start, where what is drawn depends on nothing but the trial's number.
STUDY = """name: {name}
incidents: {{path: {incidents}, columns: {{duplicate_of: duplicate_of}}}}
model: {model}
max_seq_tokens: 32
pairs: {{held_out: 1000}}
mining: {{train_pairs: {pairs}}}
training: {{epochs: 2, batch_size: {batch}, eval_every_examples: {pairs}}}
space:
  parameters:
    learning_rate: {{type: float, low: {rates[0]}, high: {rates[1]}, log: true}}
  baselines:
    v4: {{learning_rate: {rates[0]}}}
pruner: {{startup_trials: 100}}
budget: {{trials: {trials}}}
lease_s: 3
checkpoints: {{every_s: {every_s}}}
"""
PATCH = """
import json, os, sys, time
def note(**entry):
    with open({ledger!r}, "a") as file:  # one write below 4 KiB: whole, whoever else appends
        file.write(json.dumps(dict(worker=worker, trainer=os.getpid(), **entry)) + "\\n")
if "objectives.trainer" in sys.orig_argv:
    worker = os.getppid()
    note()
    import objectives.checkpoints as checkpoints
    from objectives.optimization import Optimization
    newest, step, folder = checkpoints.newest, Optimization.step, None
    def noted_newest(root, is_ours):
        global folder
        folder = root
        return newest(root, is_ours)
    def slow_step(self, ends):
        note(trial=int(folder.name), position=self.scheduler.last_epoch)
        time.sleep({step_s})
        step(self, ends)
    checkpoints.newest, Optimization.step = noted_newest, slow_step
"""


@dataclass(frozen=True)
class Setting:
    """What is trained, how slowly at the least, and how often it leaves a checkpoint."""

    model: str
    rates: tuple[float, float]
    trials: int
    steps: int  # of each trial, with an evaluation in the middle and one at the end
    step_s: float
    every_s: float

    def most_repeated(self) -> int:
        """The steps that fit into one interval between checkpoints, and the one in hand."""
        return math.ceil(self.every_s / self.step_s) + 1


@dataclass(frozen=True)
class Entry:
    """A trainer begins to load (no trial yet), or a step: `position` is how many steps of the trial came before."""

    worker: int
    trainer: int
    trial: int | None = None
    position: int | None = None


@dataclass
class Campaign:
    """Workers on one study; `ledger` knows the steps of those that were started with a pace."""

    url: URL
    folder: Path
    study: optuna.Study
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    def start(self, count: int = 1, step_s: float | None = None) -> None:
        """Without a pace, a worker as it is."""
        environment = os.environ | {
            "HPO_STORAGE": self.url.render_as_string(hide_password=False),
            "HPO_HOME": str(self.folder / "home"),
        }
        if step_s is not None:
            patch = self.folder / f"patch-{step_s}"
            patch.mkdir(exist_ok=True)
            (patch / "sitecustomize.py").write_text(PATCH.format(ledger=str(self.ledger), step_s=step_s))
            environment["PYTHONPATH"] = f"{patch}{os.pathsep}{REPOSITORY}"  # Python runs the patch first
        for _ in range(count):
            with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
                command = [sys.executable, "-m", "hpo", "worker", self.study.study_name]
                process = subprocess.Popen(
                    command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
                )
                self.workers.append(process)

    def worker(self, pid: int) -> subprocess.Popen[bytes]:
        return next(worker for worker in self.workers if worker.pid == pid)

    def alive(self) -> list[subprocess.Popen[bytes]]:
        return [worker for worker in self.workers if worker.poll() is None]

    def join(self, timeout_s: float = FINISH_TIMEOUT_S) -> list[int | None]:
        """Exit codes; None of whoever has not ended in time."""
        deadline = time.monotonic() + timeout_s
        for worker in self.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(max(deadline - time.monotonic(), 0))
        return [worker.poll() for worker in self.workers]

    def follow(self) -> Iterator[Entry]:
        """The ledger from its beginning, and on as it is written, while anybody is there to write."""
        begun = ""
        with self.ledger.open() as file:
            while True:
                if line := file.readline():
                    begun += line  # which may not be written to its end yet
                    if begun.endswith("\n"):
                        yield Entry(**json.loads(begun))
                        begun = ""
                else:
                    assert self.alive(), self.logs()
                    time.sleep(0.002)

    def runs(self) -> dict[int, list[list[int]]]:
        """Of each trial, the positions that one trainer after another began."""
        found: dict[int, dict[int, list[int]]] = {}
        for line in self.ledger.read_text().splitlines():
            entry = Entry(**json.loads(line))
            if entry.trial is not None and entry.position is not None:
                found.setdefault(entry.trial, {}).setdefault(entry.trainer, []).append(entry.position)
        return {trial: list(runs.values()) for trial, runs in found.items()}

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials()

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for worker in self.workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)  # its trainer sees that and goes
            worker.wait()


def make_campaign(url: URL, folder: Path, incidents: Path, setting: Setting, name: str) -> Campaign:
    """A study, and nobody yet to work on it."""
    folder = folder / name
    folder.mkdir()
    path = folder / "study.yaml"
    path.write_text(
        STUDY.format(
            name=name,
            incidents=incidents,
            batch=BATCH,
            pairs=setting.steps // 2 * BATCH,
            model=setting.model,
            rates=setting.rates,
            trials=setting.trials,
            every_s=setting.every_s,
        )
    )
    campaign = Campaign(url, folder, create_study(url, PostgresStorage(url), read_study_file(path)))
    campaign.ledger.touch()
    return campaign


def record(trial: optuna.trial.FrozenTrial) -> tuple[Any, ...]:
    """All that training decides."""
    by_chance = ("worker", "train_s", "texts_per_s")
    attributes = {name: value for name, value in trial.user_attrs.items() if name not in by_chance}
    return trial.number, trial.state, trial.params, trial.value, trial.intermediate_values, attributes
