"""Findings on the parameters of a search: which matter, which lie at a bound, which go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from hpo.config import field_of, searched
from hpo.evidence import FEW, TOP, Evidence, Finding, short, span
from hpo.importances import CHANCE, SHUFFLES, shuffled
from hpo.outlook import FloatArray
from hpo.study import is_baseline
from search_spaces.space import Choice, FloatRange, IntRange

NEAR_EDGE = 0.12  # of a range, of its logarithm where that is what is drawn
NATURAL = ("warmup_ratio", "min_epochs", "weight_decay", "hard_negative_skip")  # whose low bound is 0
EPOCHS_USED = 0.5  # share of them until the best evaluation, from which on more of them may help
IDLE = 0.2  # how often chance alone does as much


def at_an_edge(evidence: Evidence) -> Iterator[Finding]:
    for name, parameter in searched(evidence.file).items():
        if (bound := edge(evidence, name)) is None:
            continue
        values = [short(trial.params[name]) for trial in evidence.best if name in trial.params]
        yield Finding(
            f"The best values of {name} lie at the edge of its range",
            f"the best {len(values)} trials have {', '.join(values)}; the {bound} bound is "
            f"{short(getattr(parameter, bound))}",
            f"Move that bound further out: space.parameters.{name}.{bound}",
        )


def edge(evidence: Evidence, name: str) -> str | None:
    """The bound at which most of the best trials lie, of a parameter that matters."""
    parameter = searched(evidence.file)[name]
    if isinstance(parameter, Choice) or not evidence.matters(name) or len(evidence.searched) < FEW:
        return None
    places = [place(parameter, trial.params[name]) for trial in evidence.best if name in trial.params]
    if len(places) < TOP - 1:
        return None
    if sum(p >= 1 - NEAR_EDGE for p in places) > len(places) / 2:
        return None if field_of(name) == "epochs" and not _use_their_epochs(evidence.best) else "high"
    at_low = sum(p <= NEAR_EDGE for p in places) > len(places) / 2
    return "low" if at_low and field_of(name) not in NATURAL else None


def _use_their_epochs(trials: Sequence[FrozenTrial]) -> bool:
    """Where the best evaluation comes long before the end, many epochs only make the learning rate fall more slowly."""
    used = [
        trial.user_attrs["best_epoch"] / epochs
        for trial in trials
        if "best_epoch" in trial.user_attrs and (epochs := trial.params.get("epochs"))
    ]
    return not used or float(np.median(used)) >= EPOCHS_USED


def what_matters(evidence: Evidence) -> Iterator[Finding]:
    values_of = {name: [t.params[name] for t in evidence.best if name in t.params] for name in evidence.importances}
    mattering = {name: values for name, values in values_of.items() if values and evidence.matters(name)}
    for name, values in mattering.items():
        yield Finding(
            f"{name} decides much of the result",
            f"{100 * evidence.importances[name]:.0f} % by PED-ANOVA, and chance alone would set the best fifth so far "
            f"apart in {100 * evidence.chances[name]:.1f} % of the cases; the best {len(values)} have {span(values)}",
            _what_to_do(evidence, name),
        )
    idle = [name for name, chance in evidence.chances.items() if chance > IDLE]
    if mattering and idle and len(evidence.searched) >= 3 * FEW:
        yield Finding(
            "No influence is to be seen of " + ", ".join(idle),
            f"in {len(evidence.searched)} trials their values among the best fifth are as chance would have them",
            "Leave them at the best trial's values and spend the trials on others",
        )


def _what_to_do(evidence: Evidence, name: str) -> str:
    if any(too_few_pairs(evidence)) and field_of(name) == "train_pairs":
        return f"Raise its upper bound: space.parameters.{name}.high"
    if bound := edge(evidence, name):
        return f"Move its bound first: space.parameters.{name}.{bound}"
    return f"Narrow its range around that, or fix it, when the search goes on (space.parameters.{name})"


def rate_and_batch(evidence: Evidence) -> Iterator[Finding]:
    """Among the better half: whether larger batches go with larger learning rates."""
    for name in _searched_as("learning_rate", evidence):
        own = f"batch_size{name.removeprefix('learning_rate')}"  # bounds for its kind of model, or for all
        batches = own if own in searched(evidence.file) else "batch_size"
        both = [trial for trial in evidence.searched if {name, batches} <= trial.params.keys()]
        if len(both) < 2 * FEW:
            continue
        rate, batch = (np.log([float(trial.params[key]) for trial in both]) for key in (name, batches))
        scores = np.array([trial.value for trial in both])
        good = scores >= np.median(scores)
        correlation, chance = _together(rate, batch, good)
        if chance <= CHANCE and np.ptp(batch[good]) > 0:
            line = np.polyfit(batch[good], rate[good], 1)
            ends = np.quantile(batch[good], (0.1, 0.9))
            suits = [f"{short(float(np.exp(np.polyval(line, at))))} with {np.exp(at):.0f}" for at in ends]
            yield Finding(
                f"The {name} that suits depends on {batches}",
                f"among the better {good.sum()} trials they go together (rank correlation {correlation:+.2f}; chance "
                f"alone does as much in {100 * chance:.1f} % of the cases): about {suits[0]}, {suits[1]}",
                "Change both together: one that is fixed holds the other down",
            )


def _searched_as(field: str, evidence: Evidence) -> list[str]:
    return [name for name in searched(evidence.file) if field_of(name) == field]


def _together(left: FloatArray, right: FloatArray, good: NDArray[np.bool_]) -> tuple[float, float]:
    """Rank correlation among the good, and how often chance alone makes it as strong.

    Goodness is shuffled among neighbouring trials, since a sampler that settles makes its trials alike in both.
    """
    from scipy.stats import rankdata  # takes a second to load

    ranks = np.array([rankdata(left), rankdata(right)], dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # of equal values: no number, and nothing is as strong
        found, *others = (
            float(np.asarray(np.corrcoef(ranks[:, chosen]))[0, 1])
            for chosen in (good, *shuffled(good, SHUFFLES, np.random.default_rng(0)))
        )
    as_strong = sum(abs(other) >= abs(found) for other in others)
    return found, (1 + as_strong) / (1 + SHUFFLES) if np.isfinite(found) else 1.0


def too_few_pairs(evidence: Evidence) -> Iterator[Finding]:
    """Where the number was searched, it matters and the best have more; at the upper bound or not."""
    for name in _searched_as("train_pairs", evidence):
        known = [trial.params[name] for trial in evidence.searched if name in trial.params]
        best = [trial.params[name] for trial in evidence.best if name in trial.params]
        if best and evidence.matters(name) and (middle := np.median(best)) > np.median(known):
            yield Finding(
                "There are too few training pairs",
                f"the best {len(best)} trials have {span(best)} of {name}, {middle:,.0f} in the middle, where all have "
                f"{np.median(known):,.0f}; chance alone would set the best fifth so far apart in "
                f"{100 * evidence.chances[name]:.1f} % of the cases",
                f"Raise space.parameters.{name}.high",
            )


def region(found: Sequence[FrozenTrial], evidence: Evidence) -> str:
    """The bound beyond which all of them lie and few others do; in words."""
    others = [trial for trial in evidence.done if not is_baseline(trial)]
    for name, parameter in searched(evidence.file).items():
        values = [trial.params[name] for trial in found if name in trial.params]
        rest = [trial.params[name] for trial in others if name in trial.params]
        if isinstance(parameter, Choice) or len(values) < len(found) or len(values) < 2 or not rest:
            continue
        above, below = sum(v >= min(values) for v in rest), sum(v <= max(values) for v in rest)
        if above <= len(rest) / 10:
            return f"all with {name} from {short(min(values))} on, where {above} of {len(rest)} others were complete"
        if below <= len(rest) / 10:
            return f"all with {name} up to {short(max(values))}, where {below} of {len(rest)} others were complete"
    return ""


def place(parameter: FloatRange | IntRange, value: float) -> float:
    """0 at the low bound, 1 at the high one."""
    low, high, at = (np.log(v) if parameter.log else float(v) for v in (parameter.low, parameter.high, value))
    return float((at - low) / (high - low)) if high > low else 0.5
