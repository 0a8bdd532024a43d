"""A warm trainer begins a trial at once, and fifty trials later it holds no more memory than after a few."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from hpo.trainer_process import TrainerProcess
from objectives.config import Job, Pairs, TrialConfig
from objectives.demo_incidents import write_demo_incidents

logger = logging.getLogger(__name__)

START_S = 1.0
GROWTH = 0.05
GROWTH_OF_FEW = 0.025  # within the twelve trials of the short form
SETTLED = 5  # trials until every part of training has been used once
BATCH_SIZES = (32, 8, 128, 64, 16, 200, 48)
SCHEDULES = ("linear", "cosine", "constant_with_warmup")
PATCH = """
import time
import objectives.optimization as optimization
step, last = optimization.Optimization.step, None
def timed(self, ends):
    global last
    if self is not last:
        last = self
        with open({ledger!r}, "a") as file:
            file.write(f"{{time.monotonic()}}\\n")
    step(self, ends)
optimization.Optimization.step = timed
"""


@dataclass
class Warm:
    """A trainer process, and what was seen of it: seconds from the hand-over of each trial, bytes after it."""

    ledger: Path
    trainer: TrainerProcess = field(default_factory=TrainerProcess)
    start_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def run(self, job: Job, verdict: str = "go on") -> None:
        handed_over = time.monotonic()
        message = self.trainer.run(
            job, lambda *_: self.start_s.append(time.monotonic() - handed_over), lambda *_: verdict
        )
        assert message["event"] == "result", message
        self.step_s.append(float(self.ledger.read_text().splitlines()[-1]) - handed_over)
        assert self.trainer._process is not None
        self.memory.append(psutil.Process(self.trainer._process.pid).memory_info().rss)

    def growth(self) -> float:
        """Of what it holds once it has settled; a single trial may leave a little more or less."""
        return min(self.memory[-3:]) / self.memory[SETTLED - 1] - 1


@pytest.fixture
def warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Warm]:
    found = Warm(tmp_path / "ledger")
    (tmp_path / "sitecustomize.py").write_text(PATCH.format(ledger=str(found.ledger)))  # which Python runs first
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield found
    found.trainer.close()


@pytest.fixture
def many(config: TrialConfig, tmp_path: Path) -> TrialConfig:
    """Ten thousand incidents, and as many pairs as by default."""
    path = tmp_path / "incidents.csv"
    write_demo_incidents(path, 10_000, seed=1)
    training = config.training.model_copy(update={"eval_every_examples": 5_000})
    incidents = config.incidents.model_copy(update={"path": str(path)})
    return config.model_copy(update={"incidents": incidents, "pairs": Pairs(), "training": training})


def trial(config: TrialConfig, number: int, folder: Path | None = None) -> Job:
    """Trials of one study differ in the hyperparameters and the seed."""
    changed = {
        "learning_rate": 0.001 * (1 + number % 9),
        "batch_size": BATCH_SIZES[number % len(BATCH_SIZES)],
        "epochs": 1 + number % 3,
        "schedule": SCHEDULES[number % len(SCHEDULES)],
        "weight_decay": 0.01 * (number % 4),
    }
    config = config.model_copy(update={"training": config.training.model_copy(update=changed), "seed": number})
    return Job(config=config, checkpoint_folder=str(folder / str(number)) if folder else None, checkpoint_every_s=0)


def check_growth(
    warm: Warm, trials: int, job: Callable[[int], Job], verdict: str = "go on", growth: float = GROWTH
) -> None:
    for number in range(trials):
        warm.run(job(number), verdict)
    grown, slowest = f"{warm.growth():+.1%}", max(warm.step_s[1:])
    logger.info("from trial %d to %d memory grew by %s; slowest start %.3f s", SETTLED, trials, grown, slowest)
    assert warm.growth() < growth
    assert slowest < START_S


def test_second_trial_on_ten_thousand_incidents_starts_within_a_second(warm: Warm, many: TrialConfig) -> None:
    for number in range(2):
        warm.run(trial(many, number), "prune")
    logger.info("10,000 incidents: %.3f s to the first step", warm.step_s[1])
    assert warm.step_s[1] < START_S


def test_memory_does_not_grow_over_twelve_trials(warm: Warm, config: TrialConfig) -> None:
    check_growth(warm, 12, lambda number: trial(config, number), growth=GROWTH_OF_FEW)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_memory_does_not_grow_over_fifty_trials(warm: Warm, config: TrialConfig) -> None:
    check_growth(warm, 50, lambda number: trial(config, number))


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_memory_does_not_grow_over_fifty_trials_with_checkpoints(
    warm: Warm, config: TrialConfig, tmp_path: Path
) -> None:
    check_growth(warm, 50, lambda number: trial(config, number, tmp_path))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_memory_does_not_grow_over_fifty_trials_on_ten_thousand_incidents(warm: Warm, many: TrialConfig) -> None:
    check_growth(warm, 50, lambda number: trial(many, number), "prune")
