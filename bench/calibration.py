"""Do the report's probabilities hold? `python -m bench.calibration [--curves FILE] [--studies N] [--seed S]`

Simulated studies are searched to their end, so it is known whether a target was reached. Each is asked about in the
middle: scores so far, a target, and a number of trials to come. Compared by their Brier score: hpo/outlook.py, a
constant that knows the share of targets reached, and a straight line through the best so far over the logarithm of
trials.

FILE is JSON: a list of studies, or an object of them by name, each the list of its trials in order: the score, null for
one that was given up, or an object with `metrics`. A study may also be an object with `scores`, such a list, and, where
they are known, `target` and `ceiling`.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from hpo.feasibility import CLASSES, class_of
from hpo.outlook import LEAST, Outlook

FloatArray = NDArray[np.float64]

STUDIES, TRIALS, CUTS = 200, 160, 3  # questions asked of each study


@dataclass(frozen=True)
class Study:
    kind: str
    scores: tuple[float, ...]  # NaN: given up
    target: float | None = None
    ceiling: float = 1.0


@dataclass(frozen=True)
class Question:
    study: Study
    seen: int  # trials
    more: int
    target: float

    @property
    def past(self) -> tuple[float, ...]:
        return self.study.scores[: self.seen]

    @property
    def is_reached(self) -> bool:
        return bool(np.nanmax(self.study.scores[: self.seen + self.more]) >= self.target)


def simulate(seed: int, number: int) -> Study:
    rng = np.random.default_rng([seed, number])
    kind = ("random", "tpe", "tpe", "saturating", "drawn")[number % 5]
    scores = {"saturating": _saturating, "drawn": _drawn}.get(kind, partial(_searched, kind))(rng)
    return Study(kind, tuple(_pruned(scores, rng) if rng.random() < 0.5 else scores))


def _searched(kind: str, rng: np.random.Generator) -> FloatArray:
    """Optuna's samplers on a hill of two to eight parameters, some of which hardly matter; with noise, and cliffs."""
    dimensions, seed = int(rng.integers(2, 9)), int(rng.integers(2**31))
    top, depth, noise = rng.uniform(0.4, 0.95), rng.uniform(0.05, 0.6), rng.choice([0.0, 0.003, 0.01, 0.02])
    place, weights = rng.uniform(-0.1, 1.1, dimensions), rng.dirichlet(np.full(dimensions, rng.uniform(0.3, 2)))
    power, cliff = rng.choice([1, 2, 4]), rng.choice([0.0, rng.uniform(0, 0.4)])
    sampler = (
        optuna.samplers.RandomSampler(seed)
        if kind == "random"
        else optuna.samplers.TPESampler(seed=seed, n_startup_trials=int(rng.integers(4, 11)))
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    scores = []
    for _ in range(TRIALS):
        trial = study.ask()
        x = np.array([trial.suggest_float(f"x{number}", 0, 1) for number in range(dimensions)])
        hill = top - depth * float(weights @ np.abs(2 * (x - place)) ** power)
        scores.append(rng.uniform(0.1, 0.3) if x[0] < cliff else hill + noise * rng.standard_normal())
        study.tell(trial, scores[-1])
    return np.minimum(scores, 1.0)


def _saturating(rng: np.random.Generator) -> FloatArray:
    """Each trial a little better than those before, ever less so, with noise."""
    rise = rng.uniform(0.03, 0.3) * np.exp(-np.arange(TRIALS) / rng.uniform(5, 80))
    noise = rng.uniform(0.003, 0.03) * rng.standard_normal(TRIALS)
    return np.minimum(rng.uniform(0.5, 0.9) - rise + noise, 1.0)


def _drawn(rng: np.random.Generator) -> FloatArray:
    """Nothing is learnt: draws from a normal, a beta, or a mixture with failures."""
    kinds: list[Callable[[], FloatArray]] = [
        lambda: rng.normal(rng.uniform(0.4, 0.8), rng.uniform(0.005, 0.05), TRIALS),
        lambda: rng.beta(rng.uniform(0.5, 6), rng.uniform(0.5, 6), TRIALS) * rng.uniform(0.3, 0.95),
        lambda: np.where(rng.random(TRIALS) < 0.4, rng.uniform(0.1, 0.4, TRIALS), rng.normal(0.6, 0.03, TRIALS)),
    ]
    return np.minimum(kinds[rng.integers(3)](), 1.0)


def _pruned(scores: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Most of those below the median of the trials before are given up."""
    medians = np.array([np.median(scores[: max(number, 1)]) for number in range(len(scores))])
    given_up = (np.arange(len(scores)) >= LEAST) & (scores < medians) & (rng.random(len(scores)) < 0.8)
    return np.where(given_up, np.nan, scores)


def read_curves(path: Path) -> list[Study]:
    found, content = [], json.loads(path.read_text())
    for one in content.values() if isinstance(content, dict) else content:
        given = one if isinstance(one, dict) else {"scores": one}
        scores = tuple(map(_score, given["scores"]))
        target, ceiling = given.get("target"), float(given.get("ceiling", 1.0))
        found.append(Study("given", scores, None if target is None else float(target), ceiling))
    return found


def _score(trial: Any) -> float:
    if isinstance(trial, dict):
        trial = trial.get("metrics", {}).get("spearman")
    return math.nan if trial is None else float(trial)


def questions(study: Study, rng: np.random.Generator) -> list[Question]:
    """With targets from hardly above the best so far to far beyond; those of the study itself where it has one."""
    asked = []
    for _ in range(CUTS):
        seen = int(rng.integers(max(len(study.scores) // 8, LEAST), max(2 * len(study.scores) // 3, LEAST + 1)))
        more = int(rng.integers(1, max(len(study.scores) - seen, 1) + 1))
        past = np.array(study.scores[:seen])
        if seen >= len(study.scores) or not np.isfinite(past).any():
            continue
        best, middle = float(np.nanmax(past)), float(np.nanquantile(past, 0.6))
        near = best + (best - middle) * rng.choice([0.02, 0.05, 0.1, 0.2, 0.4, 0.8]) * rng.uniform(0.5, 1.5)
        far = rng.uniform(best, min(best + 0.3, study.ceiling)) if best < study.ceiling else near
        target = study.target if study.target is not None else float(near if rng.random() < 0.7 else far)
        asked.append(Question(study, seen, more, target))
    return [question for question in asked if np.nanmax(question.past) < question.target <= study.ceiling]


def straight(question: Question) -> float:
    """1 where a line through the last two thirds of the best so far passes the target, else 0."""
    best = np.maximum.accumulate(np.nan_to_num(np.array(question.past), nan=-np.inf))
    numbers, known = np.log(np.arange(1, question.seen + 1)), np.isfinite(best)
    known[: question.seen // 3] = False
    slope, start = np.polyfit(numbers[known], best[known], 1)
    return float(start + slope * np.log(question.seen + question.more) >= question.target)


def compare(studies: Sequence[Study], seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = [
        (question, Outlook(question.past, study.ceiling)) for study in studies for question in questions(study, rng)
    ]
    asked = [(question, outlook) for question, outlook in asked if outlook.is_open]
    if not asked:
        raise SystemExit(
            f"nothing to ask: a study needs {LEAST} scores that differ before it is cut, and a target between its best "
            "by then and its ceiling"
        )
    reached = np.array([float(question.is_reached) for question, _ in asked])
    said = np.array([outlook.chance(question.target, question.more) for question, outlook in asked])
    peers = {
        "hpo report": said,
        "base rate": np.full(len(asked), reached.mean()),
        "straight line": np.array([straight(question) for question, _ in asked]),
    }
    print(f"{len(asked)} targets in {len(studies)} studies, {reached.mean():.0%} of them reached")
    for name, answers in peers.items():
        brier = np.mean((answers - reached) ** 2)
        ratio = brier / max(float(np.mean((said - reached) ** 2)), 1e-9)
        print(f"Brier score, {name:14} {brier:.4f}  {ratio:5.2f} of the report's")
    for name in CLASSES:
        inside = np.array([class_of(chance) == name for chance in said])
        facts = f"said {said[inside].mean():.0%}, reached {reached[inside].mean():.0%}" if inside.any() else "none"
        print(f"{name:10} {int(inside.sum()):4} targets: {facts}")
    _print_ranges(asked)
    for kind in sorted({question.study.kind for question, _ in asked}):
        of_kind = np.array([question.study.kind == kind for question, _ in asked])
        ours, base = (np.mean((answer - reached)[of_kind] ** 2) for answer in (said, reached.mean()))
        print(f"{kind:12} {int(of_kind.sum()):4} targets: Brier score {ours:.4f}, of the base rate {base:.4f}")


def _print_ranges(asked: Sequence[tuple[Question, Outlook]]) -> None:
    held = [
        outlook.quantile(0.1, question.more)
        <= np.nanmax(question.study.scores[: question.seen + question.more])
        <= outlook.quantile(0.9, question.more)
        for question, outlook in asked
    ]
    print(f"80 % ranges of the best to come held in {np.mean(held):.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, metavar="FILE")
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if arguments.curves:
        try:
            studies = read_curves(arguments.curves)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SystemExit(
                f"{arguments.curves}: not a JSON list of studies, each a list of scores ({error})"
            ) from None
    else:
        with ProcessPoolExecutor() as pool:
            studies = list(pool.map(partial(simulate, arguments.seed), range(arguments.studies), chunksize=5))
    compare(studies, arguments.seed)


if __name__ == "__main__":
    main()
