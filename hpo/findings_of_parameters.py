"""Findings on the parameters of a search: which matter, which lie at a bound, which go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from optuna.trial import FrozenTrial
from scipy.stats import spearmanr

from hpo.config import field_of, searched
from hpo.evidence import FEW, P_VALUE, TOP, Evidence, Finding, short, span
from hpo.importances import score_of
from hpo.study import is_baseline
from search_spaces.space import Choice, FloatRange, IntRange

NEAR_EDGE = 0.12  # of a range, of its logarithm where that is what is drawn
NATURAL = ("warmup_ratio", "min_epochs", "weight_decay", "hard_negative_skip")  # whose low bound is 0
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
        return "high"
    at_low = sum(p <= NEAR_EDGE for p in places) > len(places) / 2
    return "low" if at_low and field_of(name) not in NATURAL else None


def what_matters(evidence: Evidence) -> Iterator[Finding]:
    mattering = [name for name in evidence.importances if evidence.matters(name)]
    for name in mattering:
        values = [trial.params[name] for trial in evidence.best if name in trial.params]
        yield Finding(
            f"{name} decides much of the result",
            f"{100 * evidence.importances[name]:.0f} % by PED-ANOVA, and chance alone would set the best fifth so far "
            f"apart in {100 * evidence.chances[name]:.1f} % of the cases; the best {len(values)} have {span(values)}",
            f"Narrow its range around that, or fix it, when the search goes on (space.parameters.{name})"
            if edge(evidence, name) is None
            else f"Move its bound first: space.parameters.{name}.{edge(evidence, name)}",
        )
    idle = [name for name, chance in evidence.chances.items() if chance > IDLE]
    if mattering and idle and len(evidence.searched) >= 3 * FEW:
        yield Finding(
            "No influence is to be seen of " + ", ".join(idle),
            f"in {len(evidence.searched)} trials their values among the best fifth are as chance would have them",
            "Leave them at the best trial's values and spend the trials on others",
        )


def rate_and_batch(evidence: Evidence) -> Iterator[Finding]:
    """Among the better half: whether larger batches go with larger learning rates."""
    rates = [name for name in searched(evidence.file) if field_of(name) == "learning_rate"]
    for name in rates:
        both = [t for t in evidence.searched if {name, "batch_size"} <= t.params.keys() and score_of(t) is not None]
        both.sort(key=lambda trial: -(score_of(trial) or 0.0))
        good = both[: len(both) // 2]
        if len(good) < FEW or "batch_size" not in searched(evidence.file):
            continue
        rate, batch = (np.log([float(trial.params[key]) for trial in good]) for key in (name, "batch_size"))
        if np.ptp(rate) == 0 or np.ptp(batch) == 0:
            continue
        together = spearmanr(rate, batch)
        if together.pvalue < P_VALUE:
            slope = float(np.polyfit(batch, rate, 1)[0])
            yield Finding(
                f"The {name} that suits depends on batch_size",
                f"among the better {len(good)} trials they go together (rank correlation {together.statistic:+.2f}, "
                f"p {together.pvalue:.2g}): with twice the batch, {2**slope:.2f} times the rate",
                "Change both together: one that is fixed holds the other down",
            )


def too_few_pairs(evidence: Evidence) -> Iterator[Finding]:
    """Where the number was searched and more was better; at the upper bound or not."""
    known = [(t.params["train_pairs"], score_of(t)) for t in evidence.searched if "train_pairs" in t.params]
    if len(known) < FEW or len({pairs for pairs, _ in known}) < 3:
        return
    pairs, scores = zip(*known, strict=True)
    trend = spearmanr(pairs, scores)
    if trend.statistic > 0 and trend.pvalue < P_VALUE:
        best = [trial.params["train_pairs"] for trial in evidence.best]
        yield Finding(
            "There are too few training pairs",
            f"scores rise with train_pairs (rank correlation {trend.statistic:+.2f}, p {trend.pvalue:.2g}); the best "
            f"{len(best)} have {span(best)}",
            "Raise space.parameters.train_pairs.high, or mining.train_pairs",
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
