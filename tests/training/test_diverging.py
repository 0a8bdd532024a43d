"""A loss or gradients that stop being finite end the trial within that step: nothing of them is learnt or reported."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo.config import Budget, StudyFile
from hpo.feasible import best_trials
from hpo.trainer_process import TrainerProcess
from objectives.config import Incidents, Job, TrialConfig
from objectives.evaluation import METRICS

STEPS = 26  # of a whole trial: two epochs of 400 pairs in batches of 32
SAYS = ("the loss is nan", "the loss is inf", "the gradients' norm is ")  # by fault
PATCH = """
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
import objectives.optimization as optimization
whole = optimization.Optimization.__init__
def init(self, *arguments):
    whole(self, *arguments)
    loss, count = self._loss, 0
    fault, step = divmod(torch.initial_seed(), 100)  # the trial's
    def breaking(*arguments):
        nonlocal count
        count += 1
        value = loss(*arguments)
        if count != step:
            return value
        if fault == 2:
            [p.register_hook(lambda g: torch.full_like(g, float("inf"))) for p in self._parameters]
            return value
        return value * float(("nan", "inf")[fault])
    self._loss = breaking
optimization.Optimization.__init__ = init
def note(*_):
    with open({ledger!r}, "a") as file:
        file.write(f"{{torch.initial_seed()}}\\n")
register_optimizer_step_post_hook(note)
"""


@dataclass(frozen=True)
class Breaking:
    """A trainer whose trials break by a fault at a step, which their seed says in hundreds and ones."""

    trainer: TrainerProcess
    ledger: Path
    config: TrialConfig

    def run(self, seed: int) -> tuple[dict[str, Any], list[float]]:
        """How the trial ended, and all values that it reported."""
        reported: list[float] = []

        def on_report(step: int, epoch: float, scores: dict[str, float]) -> str:
            reported.extend([epoch, *scores.values()])
            return "go on"

        job = Job(config=self.config.model_copy(update={"seed": seed}))
        return self.trainer.run(job, lambda *_: None, on_report), reported

    def steps(self) -> Counter[int]:
        """By seed, how often the weights changed."""
        return Counter(map(int, self.ledger.read_text().split())) if self.ledger.exists() else Counter()


@pytest.fixture
def breaking(config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Breaking]:
    ledger = tmp_path / "ledger"
    (tmp_path / "sitecustomize.py").write_text(PATCH.format(ledger=str(ledger)))  # which Python runs first
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trainer = TrainerProcess()
    yield Breaking(trainer, ledger, config)
    trainer.close()


def check_stops_at(breaking: Breaking, steps: list[int]) -> None:
    for fault, step in itertools.product(range(len(SAYS)), steps):
        end, reported = breaking.run(100 * fault + step)
        assert (end["event"], end["reason"]) == ("infeasible", "Diverged")
        assert end["message"].startswith(SAYS[fault])
        assert all(map(math.isfinite, reported))
        assert bool(reported) == (step > 7)  # when 200 examples are seen
        assert breaking.steps()[100 * fault + step] == step - 1
    unbroken = STEPS + 1
    end, reported = breaking.run(unbroken)
    assert (end["event"], breaking.steps()[unbroken]) == ("result", STEPS)  # what broke before has left no trace


def test_trial_ends_within_the_step_that_is_not_finite(breaking: Breaking) -> None:
    check_stops_at(breaking, [1, 8, 26])


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_trial_ends_within_the_step_that_is_not_finite_wherever_that_is(breaking: Breaking) -> None:
    check_stops_at(breaking, list(range(1, 21)))


def test_trial_that_diverged_is_never_the_best() -> None:
    """Whatever it reported before."""
    file = StudyFile(name="any", incidents=Incidents(path="any"), budget=Budget(trials=3))
    study = optuna.create_study(direction="maximize")
    for spearman, diverges in ((0.5, False), (0.9, True), (0.4, False)):
        trial = study.ask()
        trial.report(spearman, 200)
        for metric in METRICS:
            trial.set_user_attr(metric, spearman)
        if diverges:
            trial.set_constraint("Diverged", 1.0)
        study.tell(trial, None if diverges else spearman, TrialState.PRUNED if diverges else TrialState.COMPLETE)
    assert study.best_trial.number == 0
    assert [trial.number for trial in best_trials(study.get_trials(), file, 3)] == [0, 2]
