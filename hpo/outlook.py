"""How likely a study is to reach a score with more trials, and where its best will then be: from its own results.

What counts of a trial is how far it comes above a threshold that the best fifth passes. By how much follows a
generalised Pareto distribution, to which the upper end of any distribution tends, and which ends somewhere where scores
do (Pickands 1975). How often a trial passes may rise as the search learns, and all of it may shift upwards with the
number of trials. None of this is fitted by one set of numbers: each hypothesis on a grid counts by how well it explains
the trials, so that few trials give wide answers. `python -m bench.calibration` holds the answers to what came.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LEAST = 8  # scores, below which nothing is said
UPPER_SHARE, UPPER_COUNT = 0.2, (5, 100)  # of the scores: those above the threshold, at least and at most
SHAPES = (-1.0, -0.7, -0.5, -0.35, -0.25, -0.1, 0.1)  # -2/d where a smooth optimum lies in d dimensions
SHAPE_PRIOR = (-0.33, 0.25)  # mean and standard deviation
SCALES = tuple(np.geomspace(0.03, 8.0, 12))  # of the mean excess
RATES = tuple(np.linspace(0.05, 0.95, 9))  # at which trials pass the threshold at present
GROWTHS, GROWTH_PRIOR = (0.0, 0.4, 0.9, 1.6), 0.3  # exponents of that rate over the trials, and the prior's mean
SHIFTS = (0.5, 1.0, 2.0, 4.0, 7.0, 12.0)  # of the mean excess, by one unit of the trend
TRENDS = (1.0, 0.0, -1.0, -3.0)  # exponents over the trials: in a line, as the logarithm, coming to an end
STANDS_STILL = float(np.exp(3.5))  # how much likelier than any one shift, before anything was seen, is none
UNLIKELY = 10.0  # hypotheses whose logarithm is so far below the best's are left out
MOST_PARTS = 120  # of the trials below the threshold: those of a part count as at its middle
FUTURE_PARTS, LEVELS = 8, 41
PAST_SHARE = 0.15  # weight of what came before, plainly continued: for studies that no hypothesis fits, as rare jumps


@dataclass(frozen=True)
class Hypotheses:
    """Arrays of one shape, (hypotheses,)."""

    rates: FloatArray
    growths: FloatArray
    shapes: FloatArray
    scales: FloatArray
    shifts: FloatArray
    trends: FloatArray
    weights: FloatArray


@dataclass(frozen=True)
class Outlook:
    """Of one metric: its scores in the order of trials, NaN for a trial that was given up. More is better."""

    scores: tuple[float, ...]
    ceiling: float = 1.0

    @property
    def is_open(self) -> bool:
        """Whether there is enough to tell anything from."""
        return len(self._known) >= LEAST and self._threshold < self.best

    @cached_property
    def best(self) -> float:
        return float(self._known.max())

    def chance(self, target: float, more: int) -> float:
        """That the best of all trials, `more` of them included, is at least the target."""
        if target <= self.best:
            return 1.0
        if target > self.ceiling or more == 0:
            return 0.0
        return max(1.0 - float(self._none_above(np.array([target]), more)[0]), 0.0)  # rounding

    def quantile(self, share: float, more: int) -> float:
        """What the best will not exceed after `more` trials, with probability `share`."""
        none_above = np.maximum.accumulate(self._none_above(self._levels, more))
        if none_above[0] >= share:
            return self.best
        return float(np.interp(share, none_above, self._levels))

    def expected_gain(self, more: int) -> float:
        """How much the best will rise, on average."""
        return float(np.trapezoid(1.0 - self._none_above(self._levels, more), self._levels))

    @cached_property
    def _known(self) -> FloatArray:
        scores = np.array(self.scores, dtype=np.float64)
        return scores[np.isfinite(scores)]

    @cached_property
    def _levels(self) -> FloatArray:
        """From the best to the ceiling, closer where more happens."""
        levels: FloatArray = self.best + max(self.ceiling - self.best, 0.0) * np.linspace(0, 1, LEVELS) ** 2
        return levels

    @cached_property
    def _threshold(self) -> float:
        upper = int(np.clip(round(UPPER_SHARE * len(self._known)), *UPPER_COUNT))
        return float(np.sort(self._known)[-upper - 1])

    def _none_above(self, levels: FloatArray, more: int) -> FloatArray:
        """That no further trial passes a level, for each; they are above the threshold."""
        likely, seen = self._likely, len(self.scores)
        edges = np.linspace(seen, seen + more, min(more, FUTURE_PARTS) + 1) + 0.5
        places = (edges[1:] + edges[:-1]) / 2 / seen
        passing = np.minimum(_column(likely.rates) * places ** _column(likely.growths), 1.0) * np.diff(edges)
        shifted = self._threshold + _column(likely.shifts) * _trend(places, _column(likely.trends))
        none = np.zeros(len(levels))
        for number, level in enumerate(levels):
            above = _beyond(_column(likely.shapes), _column(likely.scales), level - shifted)
            none[number] = likely.weights @ np.exp(-(passing * above).sum(1))
        none += PAST_SHARE * ((self.best + self._rises(more) < levels[:, None]).mean(1) - none)
        return np.where(levels < self.ceiling, none, 1.0)

    def _rises(self, more: int) -> FloatArray:
        """How much the best would rise if it went on as in each stretch of the last two thirds of the trials."""
        best = np.maximum.accumulate(np.nan_to_num(np.array(self.scores), nan=self._known.min()))
        seen = len(best)
        length = max(min(more, seen // 3), 1)
        ends = np.arange(seen // 3 + length, seen + 1) - 1
        rises: FloatArray = (best[ends] - best[np.maximum(ends - length, 0)]) * more / length
        return rises

    @cached_property
    def _likely(self) -> Hypotheses:
        """Those that explain the trials, by Bayes' rule over the grid."""
        scores = np.array(self.scores, dtype=np.float64)
        places = np.arange(1, len(scores) + 1) / len(scores)
        is_above = np.nan_to_num(scores, nan=-np.inf) > self._threshold
        above, excesses = places[is_above], scores[is_above] - self._threshold
        parts = np.array_split(places[~is_above], min(int((~is_above).sum()), MOST_PARTS))
        below, counts = np.array([part.mean() for part in parts]), np.array([len(part) for part in parts])

        tails, prior = _tails(float(excesses.mean()))
        shapes, scales, shifts, trends = (_column(values) for values in tails.T)
        fit = prior + _log_density(shapes, scales, excesses - shifts * _trend(above, trends)).sum(1)
        tails, fit = tails[fit > fit.max() - UNLIKELY], fit[fit > fit.max() - UNLIKELY]
        shapes, scales, shifts, trends = (_column(values) for values in tails.T)
        would_pass = _beyond(shapes, scales, -shifts * _trend(below, trends))
        fits = []
        for rate, growth in product(RATES, GROWTHS):
            passed = len(above) * np.log(rate) + growth * np.log(above).sum() - growth / GROWTH_PRIOR
            fits.append(fit + passed + np.log1p(-rate * below**growth * would_pass) @ counts)
        rates = np.repeat(np.array([*product(RATES, GROWTHS)]), len(tails), axis=0)
        return _likeliest(np.hstack([rates, np.tile(tails, (len(fits), 1))]), np.concatenate(fits))


def _tails(mean_excess: float) -> tuple[FloatArray, FloatArray]:
    """Rows of shape, scale, shift and trend; and the logarithm of how likely each is beforehand, but for a constant."""
    moves = [(0.0, 0.0), *product(SHIFTS, TRENDS)]
    tails = np.array([(shape, scale, *move) for shape, scale, move in product(SHAPES, SCALES, moves)])
    mean, deviation = SHAPE_PRIOR
    prior: FloatArray = -(((tails[:, 0] - mean) / deviation) ** 2) / 2
    prior[tails[:, 2] > 0] -= np.log(STANDS_STILL * len(TRENDS))
    tails[:, 1:3] *= mean_excess
    return tails, prior


def _likeliest(rows: FloatArray, fit: FloatArray) -> Hypotheses:
    kept = fit > fit.max() - UNLIKELY
    weights = np.exp(fit[kept] - fit.max())
    rates, growths, shapes, scales, shifts, trends = rows[kept].T
    return Hypotheses(rates, growths, shapes, scales, shifts, trends, weights / weights.sum())


def _column(values: FloatArray) -> FloatArray:
    return values[:, None]


def _trend(places: FloatArray, exponents: FloatArray) -> FloatArray:
    """0 at the present, where a place is 1; the logarithm for an exponent of 0."""
    divisors = np.where(exponents == 0, 1.0, exponents)
    risen: FloatArray = np.where(exponents == 0, np.log(places), (places**exponents - 1) / divisors)
    return risen


def _beyond(shapes: FloatArray, scales: FloatArray, excesses: FloatArray) -> FloatArray:
    """The generalised Pareto distribution's probability of more."""
    inside = np.maximum(1 + shapes * np.maximum(excesses, 0.0) / scales, 1e-30)
    beyond: FloatArray = np.where(inside > 1e-30, inside ** (-1 / shapes), 0.0)
    return beyond


def _log_density(shapes: FloatArray, scales: FloatArray, excesses: FloatArray) -> FloatArray:
    inside = 1 + shapes * excesses / scales
    logs = -np.log(scales) - (1 + 1 / shapes) * np.log(np.maximum(inside, 1e-30))
    density: FloatArray = np.where(inside > 0, logs, -np.inf)
    return density
