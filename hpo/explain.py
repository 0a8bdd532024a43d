"""Why a trial is as it is: who proposed it, how it went, and what ended it. Right at 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import RenderableType
from rich.table import Table

from hpo.config import StudyFile, searched
from hpo.display import plain_table
from hpo.proposals import FIXED, SAMPLER_SEED
from hpo.pruning import PLANNED, WHY_PRUNED
from hpo.study import COPIED, OVERRIDES, PROPOSED_BY, trial_of
from objectives.evaluation import METRICS

BAR = 30  # characters


def explain(study: optuna.Study, file: StudyFile, number: int) -> Iterator[RenderableType]:
    """Raises InputError for a number that the study does not have."""
    trial = trial_of(study, number)
    found = trial.user_attrs
    took = f" after {trial.duration.total_seconds():,.0f} s" if trial.duration else ""
    worker = f", by {found['worker']}" if "worker" in found else ""
    yield f"trial {number} of {study.study_name}: {trial.state.name}{took}{worker}"
    yield f"proposed: {_proposed(trial)}"
    yield _parameters(trial, file)
    if trial.intermediate_values:
        yield _curve(trial)
    yield from why_ended(trial)
    yield from _scores(found)


def _proposed(trial: FrozenTrial) -> str:
    found = trial.user_attrs
    if COPIED in found:
        return f"not here, it is a copy of {found[COPIED]}"
    seed = f" (sampler's seed {found[SAMPLER_SEED]})" if SAMPLER_SEED in found else ""
    return f"{found.get(PROPOSED_BY, 'not yet, or by another program')}{seed}"


def _parameters(trial: FrozenTrial, file: StudyFile) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("parameter", "value", "searched in"):
        table.add_column(heading, no_wrap=heading == "parameter")
    for name, value in trial.params.items():
        table.add_row(name, short(value), _bounds(trial.distributions[name]))
    for name, value in trial.system_attrs.get(FIXED, {}).items() if not trial.params else ():
        table.add_row(name, short(value), "to be tried")
    for name, value in trial.user_attrs.get(OVERRIDES, {}).items():
        table.add_row(name, short(value), "not searched here")
    beside = {*trial.params, *trial.user_attrs.get(OVERRIDES, {})}
    for name, parameter in searched(file).items() if trial.params else ():
        if name in beside or not parameter.when:
            continue
        table.add_row(name, "", "not there, by its condition")
    return table


def _bounds(distribution: optuna.distributions.BaseDistribution) -> str:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return ", ".join(str(choice) for choice in distribution.choices)
    assert isinstance(distribution, optuna.distributions.FloatDistribution | optuna.distributions.IntDistribution)
    return f"{short(distribution.low)} to {short(distribution.high)}{', logarithmic' if distribution.log else ''}"


def _curve(trial: FrozenTrial) -> Table:
    table, planned = plain_table("examples", "of its plan", "spearman", words=0), trial.user_attrs.get(PLANNED)
    table.add_column("", no_wrap=True)
    for step, value in sorted(trial.intermediate_values.items()):
        share = f"{step / planned:.0%}" if planned else ""
        table.add_row(
            f"{step:,}", share, f"{value:.4f}", "█" * round(BAR * max(value, 0.0)) if math.isfinite(value) else ""
        )
    return table


def why_ended(trial: FrozenTrial) -> Iterator[str]:
    """In sentences, of which the dashboard shows the first lines and the last: a trace ends with its error."""
    found = trial.user_attrs
    if WHY_PRUNED in found:
        yield f"{'pruned' if trial.state == TrialState.PRUNED else 'overtaken'}, {found[WHY_PRUNED]}"
    if "reason" in found:
        yield f"cannot work: {found['reason']} {found.get('message', '')}".rstrip()
    if "trace" in found:
        yield f"failed:\n{found['trace']}"
    if {"stop_reason", "stop_epoch", "best_epoch"} <= found.keys():
        yield f"{found['stop_reason']} at epoch {found['stop_epoch']:.2f}; the best was at {found['best_epoch']:.2f}"
    for name, excess in trial.constraints.items():
        if excess > 0 and name != found.get("reason"):
            yield f"beyond the study's constraint on {name}, by {short(excess)}"


def _scores(found: dict[str, Any]) -> Iterator[str]:
    if all(name in found for name in METRICS):
        yield ", ".join(f"{name} {found[name]:.4f}" for name in METRICS)
    if found.get("no_head"):
        yield f"without a match head: {found['no_head']}"
    if head := found.get("head"):
        yield "with its match head: " + ", ".join(f"{name} {head[name]:.4f}" for name in METRICS)


def short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
