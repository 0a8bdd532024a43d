"""What to do next, in the order of what it may gain for an hour of a device; and where each number comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from optuna.trial import FrozenTrial

from hpo.config import StudyFile, field_of, searched
from hpo.confirmed import Confirmation
from hpo.evidence import FEW, Evidence
from hpo.findings_of_parameters import edge, place
from hpo.pruning import curve_of
from hpo.study import is_baseline
from search_spaces.space import Choice

SEEDS = 5  # of `hpo confirm`
FURTHER = 0.5  # of the epochs that the best trials had
LEAST_RISE = 0.0005  # of Spearman, below which longer training is not proposed
NEAREST, BEYOND = 1 / 3, 0.1  # of a range: the part next to a bound that is looked at, and how far beyond it
Measured = tuple[tuple[float, float], tuple[float, float]]
# On two exports of real tickets (docs/pairs.md, docs/methods.md): what Spearman gained, and what PR AUC lost.
GRADED: Measured = ((0.089, 0.079), (0.072, 0.010))
SECOND_LOSS: Measured = ((0.044, 0.024), (0.010, 0.003))
ENSEMBLE = (0.009, 0.020)  # of Spearman on test, in two studies of one export
MEMBERS = 8  # of `hpo ensemble`
SPACE_TRIALS = 30  # of a search of another space


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
    evidence: Evidence,
    expected_gain: Callable[[int], float] | None,
    device_s: float | None,
    more: int,
) -> list[Step]:
    """`expected_gain`: of so many more trials; None where it cannot be told. device_s: of the mean trial."""
    file = evidence.file
    if not (best := evidence.best):
        return []
    hours = (device_s or _train_s(evidence.done)) / 3600
    steps = [
        *_wider(evidence, hours),
        *_more_trials(evidence, expected_gain, hours, more),
        *_longer(best, file, hours),
        *_next_space(file, hours),
        *_ensemble(best, file, hours),
        *_confirm(file, evidence.confirmation, hours, len(best), sum(map(is_baseline, evidence.done))),
        *_head(file),
    ]
    known = steps if hours else [replace(step, gpu_hours=None) for step in steps]
    return [*_labels(best[0], file), *sorted(known, key=lambda step: -step.worth)]


def _train_s(trials: Sequence[FrozenTrial]) -> float:
    found = [float(trial.user_attrs.get("train_s") or math.nan) for trial in trials]
    known = [train_s for train_s in found if math.isfinite(train_s)]
    return float(np.mean(known)) if known else 0.0


def _labels(best: FrozenTrial, file: StudyFile) -> Iterator[Step]:
    """Before all else: no search reaches what they do not allow, and to change them costs no device."""
    ceilings = {name: float(ceiling) for name, ceiling in (best.user_attrs.get("ceilings") or {}).items()}
    for name, target in file.targets.items():
        if (ceiling := ceilings.get(name, 1.0)) < target:
            keys = "pairs.positive_share" if name == "spearman_binary" else "incidents.columns, pairs.positive_share"
            yield Step(
                f"Change the labels ({keys}) or lower targets.{name}: {target:.2f} is impossible",
                None,
                0.0,
                f"a perfect ranking of this study's validation pairs reaches {ceiling:.3f}",
            )


def _wider(evidence: Evidence, hours: float) -> Iterator[Step]:
    for name in searched(evidence.file):
        if bound := edge(evidence, name):
            gain = _gain_beyond(evidence, name, bound)
            yield Step(
                f"Look beyond the {bound} bound of {name}: move space.parameters.{name}.{bound}, {FEW} trials",
                gain,
                hours * FEW,
                "a line through the better trials near the bound, less its standard error, a tenth of the range further"
                if gain is not None
                else "the best lie there; trials next to it are too few or too noisy to tell a gain",
            )


def _gain_beyond(evidence: Evidence, name: str, bound: str) -> float | None:
    parameter = searched(evidence.file)[name]
    assert not isinstance(parameter, Choice)
    there = [trial for trial in evidence.searched if name in trial.params]
    places = np.array([place(parameter, trial.params[name]) for trial in there])
    towards = places if bound == "high" else 1 - places
    scores = np.array([trial.value for trial in there], dtype=np.float64)
    near = towards >= 1 - NEAREST
    if near.sum() < FEW:
        return None
    good = near & (scores >= np.median(scores[near]))  # what others lack says nothing of the best
    if np.ptp(towards[good]) == 0:
        return None
    line, covariance = np.polyfit(towards[good], scores[good], 1, cov=True)
    gain = float(line[0] - np.sqrt(covariance[0, 0])) * BEYOND
    return gain if gain >= LEAST_RISE else None


def _more_trials(
    evidence: Evidence, expected_gain: Callable[[int], float] | None, hours: float, more: int
) -> Iterator[Step]:
    if expected_gain is not None:
        name, ended = evidence.file.name, sum(trial.state.is_finished() for trial in evidence.trials)
        how = f"launch {name}" if ended < evidence.file.budget.trials else f"study extend {name} --trials {more}"
        what = f"{more} more trials in this space: hpo {how}"
        yield Step(what, expected_gain(more), hours * more, "this study's trials")


def _longer(best: Sequence[FrozenTrial], file: StudyFile, hours: float) -> Iterator[Step]:
    """The rise of the best trial's last reports, half of it going on for half as long again."""
    curve = curve_of(best[0], {})
    if len(curve.steps) < 3 or best[0].user_attrs.get("stop_reason") != "completed":
        return
    slope = float(np.min(np.diff(curve.spearman[-3:]) / np.diff(curve.steps[-3:])))  # curves flatten
    gain = slope * FURTHER * curve.steps[-1] / 2
    if gain >= LEAST_RISE:
        bound = "space.parameters.epochs.high" if "epochs" in searched(file) else "training.epochs"
        yield Step(
            f"Half as many epochs again for the best trial: raise {bound}",
            gain,
            hours * (1 + FURTHER),
            f"the slower of the last two rises of trial {best[0].number}, and half of its pace",
        )


def _next_space(file: StudyFile, hours: float) -> Iterator[Step]:
    """The pairs after the training set-up; what is left after that."""
    names = set(map(field_of, searched(file)))
    if "positives" not in names and file.mining.positives != "graded":
        yield _elsewhere("data", "graded pairs", GRADED, "docs/pairs.md", file, hours)
    elif "second_loss" not in names and file.training.second_loss == "off":
        yield _elsewhere("advanced", "a tenth of CoSENT beside MNRL", SECOND_LOSS, "docs/methods.md", file, hours)


def _elsewhere(space: str, what: str, found: Measured, page: str, file: StudyFile, hours: float) -> Step:
    gains, costs = found
    is_free = file.constraints.floors == "off"
    return Step(
        f"Search space {space} next, as a phase of a plan (hpo run PLAN.yaml)",
        float(np.mean(gains)) if is_free else None,
        hours * SPACE_TRIALS,
        f"elsewhere, static models on two exports: {what} gained {gains[0]:.3f} and {gains[1]:.3f} and cost "
        f"{costs[0]:.3f} and {costs[1]:.3f} of PR AUC ({page})"
        + ("" if is_free else "; how much of that this study's floors allow was not measured"),
    )


def _ensemble(best: Sequence[FrozenTrial], file: StudyFile, hours: float) -> Iterator[Step]:
    if len(best) > 1:
        yield Step(
            f"Combine the best models: hpo ensemble {file.name} --top {MEMBERS} -o MODEL_DIR",
            float(np.mean(ENSEMBLE)),
            hours * MEMBERS,
            f"elsewhere: two studies gained {ENSEMBLE[0]:.3f} and {ENSEMBLE[1]:.3f} on test "
            "(docs/methods.md); models that the box has kept are not trained again",
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
