"""What quality is to be had for which cost: a table of the trials that no other beats in every respect."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial
from rich.table import Table

from hpo.config import Constraints
from hpo.display import plain_table
from hpo.errors import InputError
from hpo.feasible import COSTS, MORE_IS_BETTER, complete, sign


def frontier(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials that no other beats in one respect and equals in all; the best first. Raises InputError."""
    known = [trial for trial in complete(trials) if trial.user_attrs.keys() >= {*COSTS}]
    if not known:
        raise InputError("the study has no completed trial yet; there is nothing to compare")
    points = {trial.number: _point(trial) for trial in known}
    ahead = [
        trial
        for trial in known
        if not any(
            other != points[trial.number] and all(a >= b for a, b in zip(other, points[trial.number], strict=True))
            for other in points.values()
        )
    ]
    return sorted(ahead, key=lambda trial: -(trial.value or 0.0))


def cost_table(trials: Sequence[FrozenTrial], constraints: Constraints) -> Table:
    table = plain_table("trial", "spearman", "roc_auc", "pr_auc", "model MiB", "texts/s", "train s", words=0)
    for trial in trials:
        found = trial.user_attrs
        quality = (f"{found[name]:.3f}" for name in ("spearman", "roc_auc", "pr_auc"))
        table.add_row(str(trial.number), *quality, *(f"{found[name]:,.0f}" for name in COSTS))
    limits = {name: getattr(constraints, name) for name in COSTS}
    if any(limits.values()):
        signs = {name: "≥" if name in MORE_IS_BETTER else "≤" for name in COSTS}
        bounds = (f"{signs[name]} {limits[name]:,g}" if limits[name] else "" for name in COSTS)
        table.add_section()
        table.add_row("wanted", "", "", "", *bounds)
    return table


def _point(trial: FrozenTrial) -> tuple[float, ...]:
    return (trial.value or 0.0, *(-sign(name) * trial.user_attrs[name] for name in COSTS))
