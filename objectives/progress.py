"""What is known of a training while it runs: evaluations, how far it came, and who may interrupt it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

StopReason = Literal["completed", "early_stopping", "pruned", "overtaken"]
Scores = dict[str, float]


class Diverged(ArithmeticError):
    """Loss or gradients are not finite."""

    exit_code = 1


class Unsuitable(ValueError):
    """What was chosen does not go together; another choice may."""

    exit_code = 1


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint holds how far it came, if it has a place for one."""


@dataclass(frozen=True)
class Progress:
    """One evaluation. `step` is a number of examples seen that all trials of a study have in common."""

    step: int
    epoch: float
    scores: Scores


Verdict = Literal["go on", "prune", "overtaken"]
Report = Callable[[Progress], Verdict]


@dataclass(frozen=True)
class Interruptions:
    """Where a run that may be cut short keeps its checkpoints, and how it learns that it is to stop."""

    folder: Path | None = None
    every_s: float = 60.0
    trial: str = ""  # what the checkpoints are of: those of anything else are not used
    is_asked: Callable[[], bool] = lambda: False
    # Examples of the whole plan, and what need not be repeated: examples seen, and the curve so far.
    on_start: Callable[[int, int, list[Progress]], None] = lambda planned, examples, curve: None
    on_checkpoint: Callable[[], None] = lambda: None

    def check(self) -> None:
        if self.is_asked():
            raise Interrupted


UNINTERRUPTED = Interruptions()


@dataclass
class Fit:
    """What training did so far; `best` is the evaluation whose weights the model carries at the end."""

    stop_reason: StopReason = "completed"
    batches: int = 0
    examples: int = 0
    curve: list[Progress] = field(default_factory=list)
    best: Progress | None = None
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    evaluations_since_best: int = 0
    train_s: float = 0.0  # evaluations included
