"""What to do next, in the order of what it may gain for an hour of a device; and where each number comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial

from hpo.config import StudyFile, searched
from hpo.confirmed import Confirmation
from hpo.evidence import TOP
from hpo.feasible import best_trials, complete
from hpo.pruning import curve_of
from hpo.study import is_baseline

SEEDS = 5  # of `hpo confirm`
FURTHER = 0.5  # of the epochs that the best trials had
LEAST_RISE = 0.0005  # of Spearman, below which longer training is not proposed
# Gains of Spearman that were measured on two exports of real tickets, and where that is written.
ENSEMBLE, GRADED = (0.009, 0.024), (0.08, 0.09)
WITHIN_FLOORS = 0.003  # what a phase of data gained where no metric might fall below the baselines'
DATA_TRIALS = 30  # of a search of the training pairs


@dataclass(frozen=True)
class Step:
    what: str
    gain: float | None  # of Spearman, expected
    gpu_hours: float | None
    basis: str  # of these numbers

    @property
    def worth(self) -> float:
        """Gain for an hour; what costs next to nothing first, what has no estimate last."""
        return -1.0 if self.gain is None else self.gain / max(self.gpu_hours or 0.0, 1e-3)


def next_steps(
    trials: Sequence[FrozenTrial],
    file: StudyFile,
    confirmation: Confirmation | None,
    expected_gain: Callable[[int], float] | None,
    device_s: float | None,
    more: int,
) -> list[Step]:
    """`expected_gain`: of so many more trials; None where it cannot be told. device_s: of the mean trial."""
    best = [trial for trial in best_trials(trials, file, TOP) if not is_baseline(trial)]
    if not best:
        return []
    hours = (device_s or _train_s(complete(trials))) / 3600
    steps = [
        *_more_trials(file, expected_gain, hours, more),
        *_longer(best, file, hours),
        *_pairs(file, hours),
        *_ensemble(best, file, hours),
        *_confirm(file, confirmation, hours, len(best), sum(is_baseline(trial) for trial in complete(trials))),
        *_head(file),
    ]
    return sorted(steps, key=lambda step: -step.worth)


def _train_s(trials: Sequence[FrozenTrial]) -> float:
    known = [float(trial.user_attrs["train_s"]) for trial in trials if "train_s" in trial.user_attrs]
    return float(np.mean(known)) if known else 0.0


def _more_trials(
    file: StudyFile, expected_gain: Callable[[int], float] | None, hours: float, more: int
) -> Iterator[Step]:
    if expected_gain is not None:
        what = f"{more} more trials in this space: hpo study extend {file.name} --trials {more}"
        yield Step(what, expected_gain(more), hours * more, "this study's trials")


def _longer(best: Sequence[FrozenTrial], file: StudyFile, hours: float) -> Iterator[Step]:
    """The rise of the best trial's last reports, half of it going on for half as long again."""
    curve = curve_of(best[0], {})
    if len(curve.steps) < 3 or best[0].user_attrs.get("stop_reason") != "completed":
        return
    slope = float(np.mean(np.diff(curve.spearman[-3:]) / np.diff(curve.steps[-3:])))
    gain = slope * FURTHER * curve.steps[-1] / 2
    if gain >= LEAST_RISE:
        bound = "space.parameters.epochs.high" if "epochs" in searched(file) else "training.epochs"
        yield Step(
            f"Half as many epochs again for the best trial: raise {bound}",
            gain,
            hours * (1 + FURTHER),
            f"the last reports of trial {best[0].number}, and half of their pace",
        )


def _pairs(file: StudyFile, hours: float) -> Iterator[Step]:
    if "positives" not in searched(file) and file.mining.positives != "graded":
        costly = file.constraints.floors == "off"
        kept = (
            "with no floor under PR AUC and F1" if costly else "but next to nothing where PR AUC and F1 must not fall"
        )
        yield Step(
            "Search the training pairs: space data, as the next phase of a plan",
            float(np.mean(GRADED)) if costly else WITHIN_FLOORS,
            hours * DATA_TRIALS,
            f"elsewhere: two exports gained {GRADED[0]:.2f} and {GRADED[1]:.2f}, {kept} (docs/pairs.md)",
        )


def _ensemble(best: Sequence[FrozenTrial], file: StudyFile, hours: float) -> Iterator[Step]:
    if len(best) > 1:
        yield Step(
            f"Combine the best models: hpo ensemble {file.name} -o MODEL_DIR",
            float(np.mean(ENSEMBLE)),
            hours,
            f"elsewhere: two exports gained {ENSEMBLE[0]:.3f} and {ENSEMBLE[1]:.3f} on test (docs/methods.md)",
        )


def _confirm(
    file: StudyFile, confirmation: Confirmation | None, hours: float, candidates: int, baselines: int
) -> Iterator[Step]:
    if confirmation is None and baselines:
        runs = (candidates + baselines + 2) * SEEDS
        yield Step(
            f"Know whether it is better: hpo confirm {file.name} --top {candidates} --seeds {SEEDS}",
            None,
            hours * runs,
            f"{runs} runs at most; it gains certainty, not score",
        )


def _head(file: StudyFile) -> Iterator[Step]:
    reachable = {"pr_auc", "f1"} & file.targets.keys()
    if file.head.head == "off" and "head" not in searched(file) and reachable:
        yield Step(
            "For PR AUC and F1, fit a match head: head: {head: boosting}",
            None,
            None,
            "elsewhere: PR AUC 0.63 to 0.72, F1 0.59 to 0.66 on validation (docs/methods.md)",
        )
