"""The report of a plan: what each phase brought, whether earlier projections held, and how things stand in its best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.trial import FrozenTrial

from hpo.config import StudyFile
from hpo.errors import InputError
from hpo.feasibility import RANGE, outlook
from hpo.feasible import best_trials, complete
from hpo.phases import Done, best_phase
from hpo.plan import PHASE
from hpo.report import Phase, Projection, Report, report_of
from hpo.study import is_copied, open_study, ours
from objectives.evaluation import METRICS, MetricName
from storage import studies, terms
from storage.native import PostgresStorage

Trials = list[FrozenTrial]  # in order


def phases_of(storage: PostgresStorage, name: str) -> Done:
    """The begun phases of a plan, in order. Raises InputError where there is no such plan."""
    found = list[tuple[int, str, optuna.Study, StudyFile]]()
    names = optuna.get_all_study_names(storage)
    for study_name in (one for one in names if one.startswith(f"{name}-")):
        mark = studies.attribute(storage.ask, storage.get_study_id_from_name(study_name), PHASE)
        if mark is not None:
            found.append((int(mark.split()[0]), study_name.removeprefix(f"{name}-"), *open_study(storage, study_name)))
    if not found:
        there = ", ".join(sorted(names)) or "none yet"
        raise InputError(f"no study and no plan {name!r} in this database; there are studies: {there}")
    return [(phase, study, file) for _, phase, study, file in sorted(found, key=lambda one: one[0])]


@dataclass(frozen=True)
class Stage:
    """A phase and its trials; `planned`: as many as it will have."""

    name: str
    trials: Trials
    planned: int

    @property
    def is_over(self) -> bool:
        return _ended(self.trials) >= self.planned


def report_of_plan(name: str, done: Done, to_come: Sequence[tuple[str, int]] = ()) -> Report:
    """How things stand is told of the phase that holds the best; of the last one where none has any.

    `to_come`: phases that have not begun, and their budgets in trials.
    """
    phase, study, file = best_phase(done) or done[-1]
    begun = [Stage(name, _own(study), _planned(study, file)) for name, study, file in done]
    counts = ", ".join(f"{stage.name} {_ended(stage.trials)}" for stage in begun)
    own = report_of(study, file)
    first = (
        f"Trials ended by phase: {counts}. The best is of phase {phase}; what follows the projections is of that one."
    )
    return replace(
        own,
        name=name,
        summary=(first, *own.summary),
        phases=tuple(_phases(done, begun)),
        projections=tuple(projections([*begun, *(Stage(name, [], trials) for name, trials in to_come)])),
    )


def projections(stages: Sequence[Stage]) -> list[Projection]:
    """Told after each phase for the end of the next, after the first for the end of all; and now, for what comes."""
    last = len(stages) - 1
    now = next((number for number, stage in enumerate(stages) if not stage.is_over), last + 1)
    ends = {(after, after + 1): None for after in range(min(now, last))} | ({(0, last): None} if now and last else {})
    told = [_told(stages, metric, after, end) for after, end in ends for metric in METRICS]
    coming = {now: None, last: None} if now <= last else {}
    told += [_told(stages, metric, now, end, is_now=True) for end in coming for metric in METRICS]
    return [one for one in told if one is not None]


def _told(
    stages: Sequence[Stage], metric: MetricName, after: int, end: int, *, is_now: bool = False
) -> Projection | None:
    """None where too little was known."""
    before = [trial for stage in stages[: after + 1] for trial in stage.trials]
    more = sum(stage.planned for stage in stages[after + 1 : end + 1])
    if is_now:
        more += stages[after].planned - _ended(stages[after].trials)
    ceilings = [trial.user_attrs["ceilings"][metric] for trial in complete(before) if "ceilings" in trial.user_attrs]
    ahead = outlook(before, metric, max(ceilings, default=1.0))
    if not ahead.is_open:
        return None
    best = _best(before, metric) or ahead.best
    low, high = (max(ahead.quantile(share, more), best) for share in RANGE)
    is_over = all(stage.is_over for stage in stages[: end + 1])
    came = _best([trial for stage in stages[: end + 1] for trial in stage.trials], metric) if is_over else None
    told_after = f"{stages[after].name}, so far" if is_now else stages[after].name
    return Projection(metric, told_after, stages[end].name, (low, high), came)


def _phases(done: Done, begun: Sequence[Stage]) -> list[Phase]:
    phases, before = list[Phase](), None
    for (name, _, file), stage in zip(done, begun, strict=True):
        best = best_trials(stage.trials, file, 1)
        scores = {metric: float(best[0].user_attrs[metric]) for metric in METRICS} if best else {}
        reached = scores.get("spearman")
        gain = reached - before if reached is not None and before is not None else None
        phases.append(Phase(name, _ended(stage.trials), scores, gain))
        before = max((score for score in (before, reached) if score is not None), default=None)
    return phases


def _own(study: optuna.Study) -> Trials:
    return sorted((t for t in study.get_trials(deepcopy=False) if not is_copied(t)), key=lambda trial: trial.number)


def _ended(trials: Trials) -> int:
    return sum(trial.state.is_finished() for trial in trials)


def _planned(study: optuna.Study, file: StudyFile) -> int:
    """As many as it has had, where it ended early."""
    found = terms.read(ours(study).ask, study._study_id)
    return _ended(_own(study)) if found and found.ended else file.budget.trials


def _best(trials: Trials, metric: MetricName) -> float | None:
    return max((float(trial.user_attrs[metric]) for trial in complete(trials)), default=None)
