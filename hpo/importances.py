"""Which parameters decide whether a trial comes among the best: by how much, and whether that is more than chance."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.config import StudyFile, searched
from hpo.scored import score_of
from hpo.study import is_baseline
from search_spaces.space import Choice

LEAST = 10  # trials with a score
TOP_SHARE = 0.2  # of the trials: those that count as the best
MOST, SHUFFLES = 600, 400  # trials that are tested, the newest; and how often they are shuffled
NEIGHBOURS = 10  # trials that a sampler drew from much the same knowledge: shuffled among themselves alone
CHANCE = 0.005  # below which a parameter is said to matter


@dataclass(frozen=True)
class View:
    """What an evaluator of Optuna reads of a study."""

    trials: list[FrozenTrial]
    directions: tuple[StudyDirection, ...] = (StudyDirection.MAXIMIZE,)

    def get_trials(self, deepcopy: bool = True, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
        return self.trials

    def _is_multi_objective(self) -> bool:
        return False


def importances(trials: Sequence[FrozenTrial], file: StudyFile) -> dict[str, float]:
    """Share of each searched parameter, the largest first, by PED-ANOVA; empty for few trials.

    A pruned trial counts with its best report.
    """
    from optuna.importance import PedAnovaImportanceEvaluator  # brings scikit-learn: a second

    tried = [trial for trial, _ in _scored(trials)]
    names = {name for trial in tried for name in trial.params} & searched(file).keys()
    if len(tried) < LEAST or not names:
        return {}
    view = View([_complete(trial, score) for trial, score in _scored(trials)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of regimes with few trials
        evaluator = PedAnovaImportanceEvaluator(target_quantile=TOP_SHARE)
        found = evaluator.evaluate(cast(optuna.Study, view), sorted(names))
    total = sum(found.values())
    return {name: share / total for name, share in found.items()} if total else {}


def chances(trials: Sequence[FrozenTrial], file: StudyFile, seed: int = 0) -> dict[str, float]:
    """Of each parameter, how often chance alone sets the best of the trials that have it as far apart from the others.

    Scores are shuffled among trials that were drawn one after another: a sampler that moves somewhere for no reason
    makes late trials alike, and those are no evidence.
    """
    found, recent = {}, _scored(trials)[-MOST:]
    for name, parameter in searched(file).items():
        values = [trial.params[name] for trial, _ in recent if name in trial.params]
        if len(values) < 2 * LEAST or len(set(values)) == 1:
            continue
        scores = np.array([score for trial, score in recent if name in trial.params])
        is_top, by_order = scores >= np.quantile(scores, 1 - TOP_SHARE), not isinstance(parameter, Choice)
        by_chance = shuffled(is_top, SHUFFLES, np.random.default_rng(seed))
        apart = _apart(np.vstack([is_top, by_chance]), _levels(values, by_order=by_order), by_order=by_order)
        found[name] = float((1 + (apart[1:] >= apart[0]).sum()) / (1 + SHUFFLES))
    return found


def _scored(trials: Sequence[FrozenTrial]) -> list[tuple[FrozenTrial, float]]:
    """What the search has tried, in order, with its score; baselines lie where somebody put them."""
    tried = (trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED))
    found = [(trial, score_of(trial)) for trial in tried if not is_baseline(trial)]
    known = [(trial, score) for trial, score in found if score is not None]
    return sorted(known, key=lambda pair: pair[0].number)


def _complete(trial: FrozenTrial, score: float) -> FrozenTrial:
    scored = copy(trial)
    scored.state, scored.values = TrialState.COMPLETE, [score]
    scored._trial_id = trial.number  # by which the evaluator tells trials apart
    return scored


def shuffled(is_top: NDArray[np.bool_], times: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Among neighbours; (times, trials)."""
    order = np.argsort(rng.random((times, len(is_top))) + np.arange(len(is_top)) // NEIGHBOURS, axis=1)
    return is_top[order]


def _levels(values: Sequence[Any], *, by_order: bool) -> NDArray[np.int64]:
    order: Mapping[Any, int] = {
        value: place for place, value in enumerate(sorted(set(values), key=None if by_order else str))
    }
    return np.array([order[value] for value in values])


def _apart(is_top: NDArray[np.bool_], levels: NDArray[np.int64], *, by_order: bool) -> NDArray[np.float64]:
    """Of each row of `is_top`, the largest difference of shares: up to a value, or of one choice."""
    one_hot = np.eye(levels.max() + 1)[levels]
    top, other = is_top.astype(np.float64) @ one_hot, (~is_top).astype(np.float64) @ one_hot
    shares = [counts / np.maximum(counts.sum(1, keepdims=True), 1) for counts in (top, other)]
    differences = shares[0] - shares[1]
    found: NDArray[np.float64] = np.abs(np.cumsum(differences, axis=1) if by_order else differences).max(axis=1)
    return found
