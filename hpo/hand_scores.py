"""The report of a model that was tuned by hand: from its scores alone, which targets could it ever have met?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from hpo.errors import InputError
from hpo.evidence import Finding
from hpo.feasibility import Feasibility, binary_ceiling, in_words, percent, positives_at
from hpo.next_steps import Step
from hpo.report import Report
from hpo.yamlfile import read_yaml
from objectives.config import STRICT
from objectives.evaluation import METRICS

Name = Literal["roc_auc", "f1", "pr_auc", "spearman"]
Score = Annotated[float, Field(ge=-1, le=1)]
POSITIVE = 1.0  # the grade of a match, of two classes
AGREES = 0.03  # by how much Spearman may differ from what ROC AUC says: scores are rounded, and tie


class Stopped(BaseModel):
    """Where its training ended, of how much."""

    model_config = STRICT
    epoch: Annotated[float, Field(ge=0)]
    of_epochs: Annotated[float, Field(gt=0)]
    patience: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _is_within_the_plan(self) -> Stopped:
        if self.epoch > self.of_epochs:
            raise ValueError(f"epoch {self.epoch:g} is beyond of_epochs {self.of_epochs:g}")
        return self


class HandScores(BaseModel):
    model_config = STRICT
    name: str
    scores: Annotated[dict[Name, Score], Field(min_length=1)]  # against labels of two classes
    positive_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # of the pairs; else from ROC AUC and Spearman
    targets: dict[Name, Annotated[float, Field(gt=0, le=1)]] = dict.fromkeys(
        ("roc_auc", "f1", "pr_auc", "spearman"), 0.8
    )
    stopped: Stopped | None = None

    @model_validator(mode="after")
    def _share_is_known(self) -> HandScores:
        if self.positive_share is None and not {"roc_auc", "spearman"} <= self.scores.keys():
            raise ValueError("give positive_share, or both roc_auc and spearman, from which it follows")
        if self.positive_share and self.scores.get("spearman", 0.0) > (most := binary_ceiling(self.positive_share)):
            share = percent(self.positive_share, 1)
            raise ValueError(f"with {share} positives and two classes, spearman is {most:.3f} at most")
        return self


def report_of_scores(path: Path) -> Report:
    """Raises InputError."""
    found = read_yaml(path, HandScores)
    share = found.positive_share or _share(path, found.scores["roc_auc"], found.scores["spearman"])
    rows = [_row(found, name, share) for name in ("spearman", "roc_auc", "pr_auc", "f1") if name in found.scores]
    rows.sort(key=lambda row: METRICS.index(row.metric))
    shares = {0.0: 1 - share, POSITIVE: share}
    return Report(
        name=found.name,
        summary=tuple(_summary(found, share)),
        metrics=tuple(rows),
        verdicts=tuple(f"{row.metric}: {_verdict(row, shares)}" for row in rows),
        findings=tuple(_findings(found)),
        steps=(
            Step(
                "Search on your own incidents, with this set-up as a baseline: hpo run STUDY.yaml",
                gain=None,
                gpu_hours=None,
                basis="odds for what is open follow from a study's own trials",
            ),
        ),
    )


def _row(found: HandScores, name: Name, share: float) -> Feasibility:
    ceiling = binary_ceiling(share) if name == "spearman" else 1.0
    score, target = found.scores[name], found.targets.get(name)
    state: Literal["met", "impossible", "unknown", "no target"] = "unknown"
    if target is None:
        state = "no target"
    elif score >= target:
        state = "met"
    elif target > ceiling:
        state = "impossible"
    metric = "spearman_binary" if name == "spearman" else name
    return Feasibility(metric, None, score, score, None, ceiling, target, state)


def _verdict(row: Feasibility, shares: dict[float, float]) -> str:
    if row.state == "unknown":
        return f"target {row.target:.2f} not met ({row.best:.3f}), but these labels allow it: a study tells the odds"
    return in_words(row, shares, POSITIVE)


def _share(path: Path, roc_auc: float, spearman: float) -> float:
    """Of positives: without ties, Spearman against two classes is (2 ROC AUC - 1) sqrt(3 p (1 - p))."""
    ceiling = spearman / (2 * roc_auc - 1) if roc_auc != 0.5 else math.inf
    if not 0 < ceiling <= binary_ceiling(0.5):
        raise InputError(f"{path}: a Spearman of {spearman} does not go with a ROC AUC of {roc_auc} on two classes")
    return positives_at(ceiling)


def _summary(found: HandScores, share: float) -> list[str]:
    said = "said" if found.positive_share else "as ROC AUC and Spearman tell"
    pairs = f"{percent(share, 1)} of the pairs positive ({said})"
    lines = [f"Scores of a model tuned by hand, on labels of two classes; {pairs}."]
    if found.positive_share and {"roc_auc", "spearman"} <= found.scores.keys():
        follows = (2 * found.scores["roc_auc"] - 1) * binary_ceiling(share)
        if abs(follows - found.scores["spearman"]) > AGREES:
            lines.append(
                f"These do not go together: from ROC AUC and that share follows a Spearman of {follows:.3f}, "
                f"not {found.scores['spearman']:.3f}. Were the labels graded, or the pairs other ones?"
            )
    return lines


def _findings(found: HandScores) -> list[Finding]:
    if found.stopped is None or found.stopped.epoch >= 1:
        return []
    stopped = found.stopped
    patience = f" (patience {stopped.patience})" if stopped.patience else ""
    return [
        Finding(
            f"Training stopped itself at epoch {stopped.epoch:.2f} of {stopped.of_epochs:g}: it never saw all pairs",
            f"early stopping{patience} at {percent(stopped.epoch / stopped.of_epochs)} of the plan",
            "Set min_epochs to 1 or more, or patience to off; evaluate less often (training.eval_every_examples)",
        )
    ]
