"""What a study's own trials say of how it was set up: each with its evidence, and what to do about it.

Only what holds beyond chance is said; where there is too little to tell from, nothing is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from hpo.audit import replay
from hpo.confirmed import in_words
from hpo.evidence import FEW, TOP, Evidence, Finding, count, name_of
from hpo.feasible import floors_of
from hpo.findings_of_parameters import at_an_edge, rate_and_batch, region, too_few_pairs, what_matters
from hpo.pruning import curve_of, longest_plan, margin_of
from hpo.study import is_baseline, parameters_of

LEAST_SHARE = 0.05  # of the trials, below which a few that stopped early are no matter
MOST_REPLAYED = 60  # trials, the newest
RISING = 0.002  # of Spearman between the last two reports, from which on a curve counts as rising
APART = 2.8  # standard deviations of one run, within which 95 % of the differences of two lie
OVERFIT, FALLEN = 0.15, 0.01  # of Spearman: between training and validation, and after the best evaluation


def findings(evidence: Evidence) -> list[Finding]:
    return [finding for look in LOOKS for finding in look(evidence)]


def _stopped_too_early(evidence: Evidence) -> Iterator[Finding]:
    """Before one epoch, as version 4 did; or most trials within two where many more were planned."""
    stopped = [trial for trial in evidence.done if _stopped(trial)]
    early = [trial for trial in stopped if trial.user_attrs["stop_epoch"] < 1]
    soon = [t for t in stopped if t.user_attrs["stop_epoch"] < min(2.0, float(_setting(t, evidence, "epochs")) / 4)]
    soon = soon if len(soon) > len(evidence.done) / 2 else []
    if len(early) < LEAST_SHARE * len(evidence.done) and not any(map(is_baseline, early)):
        early = soon
    if not early:
        return
    first = min(early, key=lambda trial: (not is_baseline(trial), trial.user_attrs["stop_epoch"]))
    epoch, patience = first.user_attrs["stop_epoch"], _setting(first, evidence, "patience")
    planned = f"{epoch:.2f} of {_setting(first, evidence, 'epochs')}"
    where = "before one epoch" if epoch < 1 else "within two epochs"
    yield Finding(
        f"Early stopping ended {count(len(early), 'trial')} {where}: {name_of(first)} at epoch {planned}",
        f"it had {count(len(first.intermediate_values), 'evaluation')}, one every "
        f"{_setting(first, evidence, 'eval_every_examples'):,} examples, and a patience of {patience}",
        "Set min_epochs to 1 or more, or patience to off, or evaluate less often (training.eval_every_examples)",
    )


def _setting(trial: FrozenTrial, evidence: Evidence, name: str) -> Any:
    return parameters_of(trial).get(name, getattr(evidence.file.training, name))


def _still_rising(evidence: Evidence) -> Iterator[Finding]:
    """Not counted: a rise within what the schedule's last steps bring to everybody."""
    rising = [trial for trial in evidence.best if _ends_at_its_best(trial) and _last_rise(trial) >= RISING]
    if len(evidence.searched) >= FEW and len(rising) > len(evidence.best) / 2:
        yield Finding(
            "The best trials ran into the end of their epochs while they still rose",
            f"{len(rising)} of the best {len(evidence.best)} were best at their last evaluation, by "
            f"{np.median([_last_rise(trial) for trial in rising]):.4f} over the one before",
            "Raise the upper bound of epochs, or training.epochs where it is fixed",
        )


def _pruned_too_early(evidence: Evidence) -> Iterator[Finding]:
    """Replayed on the trials that were not pruned: would the study's pruner have given up the best of them?"""
    file, whole = evidence.file, [trial for trial in evidence.done if trial.intermediate_values][-MOST_REPLAYED:]
    pruned = sum(trial.state == TrialState.PRUNED for trial in evidence.trials)
    if file.pruner.kind == "off" or len(whole) < FEW or not pruned:
        return
    found = replay(file.pruner, whole, longest_plan(file), floors_of(whole, file))
    noise = margin_of(whole, file.pruner) / file.pruner.noise_margin if file.pruner.noise_margin else 0.0
    if found.missed > max(noise / 4, 0.005):
        yield Finding(
            "Trials are pruned too early",
            f"played again on the {len(whole)} trials with whole curves, the pruner gives up the best of them and "
            f"misses {found.missed:.4f} of Spearman",
            f"Raise pruner.warmup_examples or pruner.percentile; hpo prune-audit {file.name} compares",
        )


def _label_noise(evidence: Evidence) -> Iterator[Finding]:
    noisy = evidence.data.get("noise_ceilings", {})
    held = {metric: c for metric, c in noisy.items() if c < evidence.file.targets.get(metric, 0.0)}
    if held:
        agreed = ", ".join(f"{name} {share:.0%}" for name, share in evidence.data.get("agreement", {}).items())
        yield Finding(
            "Label noise holds down " + ", ".join(f"{metric} to about {c:.2f}" for metric, c in held.items()),
            f"linked duplicates agree in {agreed}".replace("%", " %") + "; what differs is taken for chance",
            "Correct the labels of linked duplicates (hpo check-data shows how many differ), or lower targets."
            + next(iter(held)),
        )


def _overfitting(evidence: Evidence) -> Iterator[Finding]:
    gaps = [
        float(trial.user_attrs["train_spearman"]) - float(trial.user_attrs["spearman"])
        for trial in evidence.best
        if trial.user_attrs.get("train_spearman") is not None
    ]
    if gaps and (gap := float(np.median(gaps))) > OVERFIT:
        yield Finding(
            "The best models know their training incidents much better than others",
            f"Spearman is {gap:.3f} higher on pairs of training incidents, in the middle of the best {len(gaps)}",
            "More training pairs (mining.train_pairs, space data), more weight_decay or word_dropout (space advanced)",
        )
    fallen = [trial for trial in evidence.searched if _fell_after_its_best(trial)]
    if len(evidence.searched) >= FEW and len(fallen) > len(evidence.searched) / 2:
        yield Finding(
            "Most trials fall after their best evaluation",
            f"{len(fallen)} of {len(evidence.searched)} ended {FALLEN} or more of Spearman below it; the best weights "
            "are kept, the rest of the training is wasted",
            "A smaller patience saves that time; more pairs (mining.train_pairs, space data) put the fall off",
        )


def _seeds(evidence: Evidence) -> Iterator[Finding]:
    if (found := evidence.confirmation) is not None:
        spreads = [run.spread["spearman"] for run in found.runs if run.seeds > 1 and run.baseline is None]
        spread = float(np.sqrt(np.mean(np.square(spreads)))) if spreads else 0.0
        varies = f"by {spread:.4f}" if spreads else "by an unknown amount, as too few ran"
        yield Finding(
            f"Between seeds, Spearman varies {varies}",
            in_words(found),
            f"Take differences between two trials below {APART * spread:.4f} for chance",
        )
        return
    best = evidence.best
    if len(best) == TOP and (interval := (best[0].user_attrs.get("intervals") or {}).get("spearman")):
        low = interval[0]
        if (least := best[-1].value or 0.0) >= low:
            told = f"hpo confirm {evidence.file.name} tells which is best on several seeds"
            yield Finding(
                f"The best {TOP} trials lie within the interval of the best",
                f"they have {least:.4f} to {best[0].value:.4f}; its 95 % interval begins at {low:.4f}",
                told if any(map(is_baseline, evidence.done)) else "Do not take the first for better than the others",
            )


def _failures(evidence: Evidence) -> Iterator[Finding]:
    infeasible = [
        trial for trial in evidence.trials if trial.state == TrialState.PRUNED and "reason" in trial.user_attrs
    ]
    for reason, times in Counter(str(trial.user_attrs["reason"]) for trial in infeasible).most_common():
        found = [trial for trial in infeasible if trial.user_attrs["reason"] == reason]
        yield Finding(
            f"{count(times, 'trial')} could not work: {reason}",
            region(found, evidence) or "they have no range in common that the others have not",
            "The search learns to stay away; narrow the space where all of a region fails",
        )
    failed = [trial for trial in evidence.trials if trial.state == TrialState.FAIL]
    if failed:
        traces = Counter(str(t.user_attrs.get("trace", "no trace")).splitlines()[-1].partition(":")[0] for t in failed)
        kinds = ", ".join(f"{kind} {times}" for kind, times in traces.most_common(3))
        yield Finding(
            f"{count(len(failed), 'trial')} failed",
            f"by kind of error: {kinds}",
            f"hpo trial {evidence.file.name} {failed[-1].number} shows where",
        )


def _nothing_complete(evidence: Evidence) -> Iterator[Finding]:
    ended = [trial for trial in evidence.trials if trial.state.is_finished()]
    pruned = [trial for trial in ended if trial.state == TrialState.PRUNED and "reason" not in trial.user_attrs]
    if ended and not evidence.done and len(pruned) > len(ended) / 2:
        yield Finding(
            "Trials were pruned and none was completed",
            f"{len(pruned)} of {len(ended)} ended so",
            "Raise pruner.startup_trials and pruner.warmup_examples, or set pruner.kind to off",
        )


LOOKS = (
    _nothing_complete,
    _stopped_too_early,
    _still_rising,
    at_an_edge,
    what_matters,
    rate_and_batch,
    too_few_pairs,
    _pruned_too_early,
    _label_noise,
    _overfitting,
    _seeds,
    _failures,
)


def _stopped(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("stop_reason") == "early_stopping" and "stop_epoch" in trial.user_attrs


def _reports(trial: FrozenTrial) -> list[float]:
    return list(curve_of(trial, {}).spearman)


def _ends_at_its_best(trial: FrozenTrial) -> bool:
    reports = _reports(trial)
    return trial.user_attrs.get("stop_reason") == "completed" and len(reports) > 1 and reports[-1] == max(reports)


def _last_rise(trial: FrozenTrial) -> float:
    before, last = _reports(trial)[-2:]
    return last - before


def _fell_after_its_best(trial: FrozenTrial) -> bool:
    reports = _reports(trial)
    return len(reports) > 2 and max(reports) - reports[-1] >= FALLEN
