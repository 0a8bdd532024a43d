"""What `hpo confirm` is worth: does it pick the best, and does it keep silent where there is nothing to gain?

Simulated studies: 40 trials whose true means come from a search, each scored once; the best five of them and two
baselines are confirmed on five seeds. A run scores its configuration's true mean, what the finite split does to that
configuration (the same for all its seeds, another on test), and what its seed does, much the same on validation and
on test (correlations of 0.8 and 0.9 were measured). Others choose at the same cost by the best single run: among
all runs of the same entrants, trained equally often, or in the study, which goes on with as many more trials. In a tie
no entrant is better than a baseline: whoever is called better then is a false win, of which 2.5 % are allowed.

Run: python -m bench.confirmation [--studies N] [--seed S]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hpo.race import Duel, Race, duel_of, gain_on_test, run_race, verdict_of
from objectives.evaluation import RESAMPLES, FloatArray

TRIALS, TOP, BASELINES, SEEDS = 40, 5, 2, 5
MOST = (TOP + BASELINES + 2) * SEEDS  # runs of a confirmation that drops nobody
WIDE, NARROW, HOMING = 0.06, 0.02, 15  # how far trials are from the best there is: at first, in the end, after how many
BEHIND = 0.03  # and so far, on average, is a baseline
BOOTSTRAP_ERROR = 0.1  # of its standard deviation
ALLOWED = 0.025
SINGLE, AGAIN, GO_ON, CONFIRM = "best single run", "best of as many runs", "study goes on", "confirm"


@dataclass(frozen=True)
class Noise:
    seed: float = 0.006  # standard deviations of Spearman
    split: float = 0.006
    spread: float = 0.0  # of the logarithm of each configuration's own deviation between seeds
    tails: int = 0  # degrees of freedom of Student's t; 0: normal
    shared: float = 0.85  # correlation of what a seed does on validation and on test

    def of_seeds(self, rng: np.random.Generator, deviations: FloatArray, runs: int) -> FloatArray:
        """(configurations, runs), of unit variance times the configurations' deviations."""
        shape = len(deviations), runs
        unit = rng.standard_normal(shape)
        if self.tails:
            unit = rng.standard_t(self.tails, shape) / np.sqrt(self.tails / (self.tails - 2))
        return deviations[:, None] * unit


NOISES = {
    "seeds and split": Noise(),
    "seeds alone": Noise(split=0.0),
    "split above all": Noise(seed=0.001),
    "unequal spreads": Noise(spread=1.0),
    "heavy tails": Noise(tails=3),
    "unequal, heavy, no split": Noise(split=0.0, spread=1.0, tails=3),
    "seeds unlike on test": Noise(shared=0.0),
}


# Entrants beside so many baselines, and how far all but one of them are behind.
TIES = {
    "5 like 2 baselines": (TOP, BASELINES, 0.0),
    "8 like 1 baseline": (8, 1, 0.0),
    "1 like 2 baselines, 4 worse": (TOP, BASELINES, 0.01),
}


@dataclass(frozen=True)
class Configurations:
    means: FloatArray  # the true ones
    offsets: FloatArray  # by the validation split
    deviations: FloatArray  # between seeds

    def chosen(self, order: NDArray[np.int64], baselines: Configurations) -> Configurations:
        """Some of these, then the baselines."""
        pairs = zip(vars(self).values(), vars(baselines).values(), strict=True)
        return Configurations(*(np.concatenate([own[order], theirs]) for own, theirs in pairs))

    def runs(self, noise: Noise, rng: np.random.Generator, runs: int) -> FloatArray:
        """Scores on validation, (configurations, runs)."""
        return (self.means + self.offsets)[:, None] + noise.of_seeds(rng, self.deviations, runs)


@dataclass(frozen=True)
class Outcome:
    regrets: Mapping[str, float]  # by way of choosing
    runs: int  # that it took
    wins: bool  # something is called better than the best baseline
    naive: bool  # as it would be, judged on the seeds that chose
    holds: bool  # the interval, the true gain


def configurations(noise: Noise, rng: np.random.Generator, means: FloatArray) -> Configurations:
    shape = len(means)
    spread = np.exp(noise.spread * rng.standard_normal(shape) - noise.spread**2)  # a mean variance of one
    return Configurations(means, noise.split * rng.standard_normal(shape), noise.seed * spread)


def searched(noise: Noise, rng: np.random.Generator) -> Outcome:
    """The best of a search and its baselines, confirmed; and what others would have chosen."""
    distance = NARROW + (WIDE - NARROW) * np.exp(-np.arange(TRIALS + MOST) / HOMING)
    trials = configurations(noise, rng, -distance * rng.exponential(size=TRIALS + MOST))
    baselines = configurations(noise, rng, -BEHIND * rng.exponential(size=BASELINES))
    once = trials.runs(noise, rng, 1)[:, 0]
    order = np.argsort(-once[:TRIALS])[:TOP]
    entrants = trials.chosen(order, baselines)
    confirmed, winner = confirm(noise, rng, entrants)
    each = entrants.runs(noise, rng, max(confirmed.runs // len(entrants.means), 1))
    picks = {
        SINGLE: trials.means[order[0]],
        AGAIN: entrants.means[each.max(axis=1).argmax()],
        GO_ON: trials.means[once[: TRIALS + confirmed.runs].argmax()],
        CONFIRM: entrants.means[winner],
    }
    regrets = {way: float(entrants.means.max() - mean) for way, mean in picks.items()}
    return Outcome(regrets, confirmed.runs, confirmed.wins, confirmed.naive, confirmed.holds)


def tied(noise: Noise, top: int, baselines: int, behind: float, rng: np.random.Generator) -> Outcome:
    """One entrant is as good as the baselines; the others are so far behind."""
    means = np.full(top + baselines, -behind)
    means[[0, *range(top, top + baselines)]] = 0.0
    return confirm(noise, rng, configurations(noise, rng, means), baselines)[0]


def confirm(
    noise: Noise, rng: np.random.Generator, entrants: Configurations, baselines: int = BASELINES
) -> tuple[Outcome, int]:
    """What came of it, and the winner; the last entrants are the baselines."""
    luck = noise.of_seeds(rng, entrants.deviations, 2 * SEEDS)
    other = noise.of_seeds(rng, entrants.deviations, 2 * SEEDS)
    validation = (entrants.means + entrants.offsets)[:, None] + luck
    by_split = noise.split * rng.standard_normal(len(entrants.means))
    test = (entrants.means + by_split)[:, None] + noise.shared * luck + np.sqrt(1 - noise.shared**2) * other
    seeds = range(SEEDS)
    outcomes = {one: dict(zip(seeds, map(float, row[:SEEDS]), strict=True)) for one, row in enumerate(validation)}
    race = run_race(outcomes, seeds)
    duel = duel_of(race, range(len(entrants.means) - baselines, len(entrants.means)))
    assert duel is not None
    found = noise.split * (1 + BOOTSTRAP_ERROR * rng.standard_normal())
    replicates = found * (rng.standard_normal(RESAMPLES) - rng.standard_normal(RESAMPLES))
    differences = test[duel.challenger] - test[duel.baseline]
    gain = gain_on_test(differences[SEEDS:], replicates)
    naive = gain_on_test(differences[: _in_common(race, duel)], replicates)
    true = entrants.means[duel.challenger] - entrants.means[duel.baseline]
    runs = sum(map(len, race.scores.values())) + 2 * SEEDS
    wins, is_naive = verdict_of(gain) == "better", verdict_of(naive) == "better"
    return Outcome({}, runs, wins, is_naive, bool(gain[1] <= true <= gain[2])), duel.winner


def _in_common(race: Race, duel: Duel) -> int:
    return len(race.differences(duel.challenger, duel.baseline))


def _outcomes(given: argparse.Namespace, of: Callable[[np.random.Generator], Outcome]) -> list[Outcome]:
    return [of(rng) for rng in np.random.default_rng(given.seed).spawn(given.studies)]


def _print_searches(given: argparse.Namespace) -> None:
    ways = (CONFIRM, AGAIN, SINGLE, GO_ON)
    print(f"best entrant picked, in %: {CONFIRM} / {AGAIN} / {SINGLE}; regret, in 0.001: also {GO_ON}\n")
    print("| noise | best picked | regret | runs saved, % | called better, % | interval holds, % |")
    print("|---|---|---|---|---|---|")
    for kind, noise in NOISES.items():
        found = _outcomes(given, partial(searched, noise))
        picked = [f"{100 * np.mean([one.regrets[way] == 0 for one in found]):.0f}" for way in ways[:3]]
        regrets = [f"{1000 * np.mean([one.regrets[way] for one in found]):.1f}" for way in ways]
        wins, holds = (100 * np.mean([getattr(one, how) for one in found]) for how in ("wins", "holds"))
        shares = [100 * (1 - np.mean([one.runs for one in found]) / MOST), wins, holds]
        cells = [" / ".join(picked), " / ".join(regrets), *(f"{share:.1f}" for share in shares)]
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


def _print_ties(given: argparse.Namespace) -> None:
    error = 200 * np.sqrt(ALLOWED * (1 - ALLOWED) / given.studies)
    print(f"\nfalse wins, in %: {100 * ALLOWED} ± {error:.1f} allowed; in brackets, judged on the seeds that chose\n")
    print(f"| noise | {' | '.join(TIES)} |\n|---|{'---|' * len(TIES)}")
    for kind, noise in NOISES.items():
        cells = []
        for tie in TIES.values():
            found = _outcomes(given, partial(tied, noise, *tie))
            fresh, naive = (100 * np.mean([getattr(one, how) for one in found]) for how in ("wins", "naive"))
            cells.append(f"{fresh:.1f} ({naive:.1f})")
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What confirming picks, and what it claims, in simulated studies.")
    parser.add_argument("--studies", type=int, default=2_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    _print_searches(given)
    _print_ties(given)


if __name__ == "__main__":
    main()
