"""What a study, or a plan of several, has found: which targets can be met, how, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.config import CONFIRM, StudyFile
from hpo.confirmed import Confirmation, confirmation_of
from hpo.evidence import Evidence, Finding, evidence_of
from hpo.explain import short
from hpo.feasibility import Feasibility, feasibility, further, in_words, outlook
from hpo.feasible import best_trials
from hpo.findings import findings
from hpo.next_steps import Step, next_steps
from hpo.report_plots import Plot, plots
from hpo.status import why_paused
from hpo.study import DATA, is_copied, ours, parameters_of
from objectives.evaluation import MetricName
from storage import studies, terms
from storage.terms import Terms

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Projection:
    """What was to be expected of the best after more trials, told from those before, and what came."""

    metric: MetricName
    told_after: str  # phase
    at_end_of: str
    range: tuple[float, float]  # 80 %
    came: float | None  # None: not yet

    @property
    def has_held(self) -> bool | None:
        return None if self.came is None else self.range[0] - 1e-9 <= self.came <= self.range[1] + 1e-9


@dataclass(frozen=True)
class Phase:
    """Of a plan: its trials, and its own best."""

    name: str
    trials: int
    scores: Mapping[MetricName, float]
    gain: float | None  # of Spearman over all before


@dataclass(frozen=True)
class Report:
    name: str
    summary: tuple[str, ...]
    metrics: tuple[Feasibility, ...] = ()
    verdicts: tuple[str, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()  # of the best trial
    confirmation: Confirmation | None = None
    phases: tuple[Phase, ...] = ()
    projections: tuple[Projection, ...] = ()
    findings: tuple[Finding, ...] = ()
    steps: tuple[Step, ...] = ()
    plots: tuple[Plot, ...] = ()


def report_of(study: optuna.Study, file: StudyFile) -> Report:
    trials = [trial for trial in study.get_trials(deepcopy=False) if not is_copied(trial)]
    ask, found = ours(study).ask, terms.read(ours(study).ask, study._study_id)
    data = studies.attribute(ask, study._study_id, DATA) or {}
    confirmation, rows = confirmation_of(study), feasibility(trials, file)
    best = best_trials(trials, file, 1)
    exported = [trial for trial in trials if confirmation and trial.number == confirmation.winner] or best
    if file.name.endswith(CONFIRM):  # a search it is not: no odds, no next steps
        return Report(name=file.name, summary=tuple(_summary(study, file, trials, found, best, exported)))
    evidence = evidence_of(trials, file, data, confirmation)
    return Report(
        name=file.name,
        summary=tuple(_summary(study, file, trials, found, best, exported)),
        metrics=tuple(rows),
        verdicts=tuple(_verdicts(rows, file, data)),
        parameters=tuple((n, short(value)) for trial in exported for n, value in parameters_of(trial).items()),
        confirmation=confirmation,
        findings=tuple(findings(evidence)),
        steps=tuple(_steps(evidence, rows, found)),
        plots=tuple(plots(trials, file, evidence.importances)),
    )


def _summary(
    study: optuna.Study,
    file: StudyFile,
    trials: Sequence[FrozenTrial],
    found: Terms | None,
    best: Sequence[FrozenTrial],
    exported: Sequence[FrozenTrial],
) -> list[str]:
    states = [trial.state for trial in trials]
    ended = sum(state.is_finished() for state in states)
    counts = ", ".join(f"{states.count(state)} {word}" for state, word in STATES.items() if state in states)
    hours = f"; {found.device_s / 3600:.2f} device hours" if found and found.device_s else ""
    lines = [f"{ended} of {file.budget.trials} trials have ended ({counts or 'none yet'}){hours}."]
    if found and found.ended:
        lines.append(f"The study ended early: {found.ended}.")
    if paused := why_paused(study, found):
        lines.append(f"{paused}.")
    if file.name.endswith(CONFIRM):
        searched = file.name.removesuffix(CONFIRM)
        return [*lines, f"It trains the best of {searched} on several seeds; what was found: hpo report {searched}."]
    if best:
        lines.append(f"The best is trial {best[0].number}, with a Spearman of {best[0].value:.4f} on validation.")
    if best and exported[0].number != best[0].number:
        lines.append(
            f"What is exported is trial {exported[0].number}, the best on several seeds; scores and plots here are "
            f"of trial {best[0].number}, the best on one."
        )
    return lines + _without_best(states, ended, best)


def _without_best(states: Sequence[TrialState], ended: int, best: Sequence[FrozenTrial]) -> list[str]:
    if best:
        return []
    if not ended:
        return ["Nothing has ended yet, so there is nothing to judge; look again when trials have."]
    if TrialState.COMPLETE in states:
        return ["No complete trial keeps the study's constraints; hpo costs shows what is to be had."]
    return ["No trial was completed, so there is no best and no odds; what ended them is below."]


def _verdicts(rows: Sequence[Feasibility], file: StudyFile, data: Mapping[str, Any]) -> list[str]:
    shares = {float(grade): float(share) for grade, share in data.get("grade_shares", {}).items()}
    positive = float(data.get("positive_grade", getattr(file.labels, file.labels.positive)))
    return [f"{row.metric}: {in_words(row, shares, positive)}" for row in rows]


def _steps(evidence: Evidence, rows: Sequence[Feasibility], found: Terms | None) -> list[Step]:
    trials, file = evidence.trials, evidence.file
    ended = sum(trial.state.is_finished() for trial in trials)
    device_s = found.device_s / ended if found and found.device_s and ended else None
    ahead = outlook(trials, "spearman", rows[0].ceiling) if rows else None
    gain = ahead.expected_gain if ahead and ahead.is_open else None
    return next_steps(evidence, gain, device_s, further(trials, file))
