"""What `hpo confirm` has found, as it is kept with the study: read by the report and the export, written once."""

from __future__ import annotations

from typing import Annotated, Literal

import optuna
from pydantic import BaseModel, Field

from objectives.config import STRICT
from objectives.evaluation import MetricName

CONFIRMED = "hpo:confirmed"  # a study's system attribute
Interval = Annotated[tuple[float, float, float], Field(strict=False)]  # point, and 95 % from and to
Scores = dict[MetricName, float]


class Runs(BaseModel):
    """One configuration on several seeds."""

    model_config = STRICT
    trial: int  # of the study that it was found in
    baseline: str | None = None  # its name
    seeds: int  # that chose; fewer than the others' where it was dropped
    mean: Scores  # on validation
    spread: Scores  # standard deviation between seeds
    gain: Interval | None = None  # of Spearman over the best baseline, on validation; None: that one itself
    dropped: str | None = None  # why
    test: Scores | None = None  # mean on test: of the two that were judged alone


class Confirmation(BaseModel):
    model_config = STRICT
    study: str  # that it ran in
    runs: Annotated[tuple[Runs, ...], Field(strict=False)]  # the best first
    winner: int  # number of its trial
    against: str  # the best baseline
    gain: Interval  # of Spearman over that baseline, on validation: chosen by it, so too good
    gain_on_test: Interval
    verdict: Literal["better", "indistinguishable", "worse"]  # than the baseline, on test
    why_stopped: str
    # Whose gains these are where the winner is that baseline: the best trial that is none. None: the winner's.
    challenger: int | None = None
    judged_seeds: int = 0  # on which the two were judged; none of them took part in choosing


def in_words(found: Confirmation) -> str:
    gain, low, high = found.gain_on_test
    trial = found.winner if found.challenger is None else found.challenger
    leads = "" if found.challenger is None else f"the baseline {found.against} leads on validation; "
    than = "from" if found.verdict == "indistinguishable" else "than"
    return (
        f"{leads}on test, trial {trial} is {found.verdict} {than} the baseline {found.against}: "
        f"spearman {gain:+.3f} (95 % {low:+.3f} to {high:+.3f})"
    )


def confirmation_of(study: optuna.Study) -> Confirmation | None:
    found = study._storage.get_study_system_attrs(study._study_id).get(CONFIRMED)
    return Confirmation.model_validate(found) if found else None
