"""When a study ends before its trials are used up, and how people pause it, resume it and let it go on for longer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import islice

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.config import CONFIRM, StudyFile, searched
from hpo.errors import InputError
from hpo.feasible import floors_of, reaches
from hpo.pause import pause_reason
from hpo.pause import resume as forgive
from hpo.pruning import margin_of
from hpo.standing import standing_of
from hpo.study import CONFIG, EXTRA, is_copied, manage, ours, raised
from search_spaces.space import Space, is_finite, label, points
from storage import studies, terms
from storage.native import PostgresStorage

EXTENDED = "hpo:extended"  # a study's system attribute: trials from this number on count for its plateau


def end_if_due(storage: PostgresStorage, study: optuna.Study, file: StudyFile) -> None:
    """Ends the study on a plateau, or when nothing is left to try; one that confirms another, when all is decided."""
    trials = study.get_trials(deepcopy=False)
    if file.name.endswith(CONFIRM):
        if why := standing_of(trials).ended:
            terms.end(storage.ask, study._study_id, why)
    elif is_exhausted(trials, searched(file)):
        terms.end(storage.ask, study._study_id, "every point of its space was tried")
    elif file.budget.plateau_trials is not None:
        first = studies.attribute(storage.ask, study._study_id, EXTENDED) or 0
        if is_plateau([trial for trial in trials if not is_copied(trial)], file, first):
            last = f"the last {file.budget.plateau_trials} trials brought no gain above noise"
            terms.end(storage.ask, study._study_id, last)


def is_exhausted(trials: Sequence[FrozenTrial], space: Space) -> bool:
    if not is_finite(space) or any(trial.state == TrialState.WAITING for trial in trials):
        return False
    tried = {label(trial.params) for trial in trials}
    return all(label(values) in tried for values in islice(points(space), len(tried) + 1))


def is_plateau(trials: Sequence[FrozenTrial], file: StudyFile, first: int = 0) -> bool:
    """Whether the last trials to end, those from number `first` on, are no better than the best before and noise."""
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    ended.sort(key=lambda trial: trial.datetime_complete or datetime.max)
    last = [trial for trial in ended if trial.number >= first][-(file.budget.plateau_trials or 0) :]
    recent, floors = {trial.number for trial in last}, floors_of(trials, file)
    sound = [trial for trial in ended if trial.state == TrialState.COMPLETE and reaches(trial, floors)]
    before = max((trial.value or 0.0 for trial in sound if trial.number not in recent), default=None)
    if before is None or len(last) < (file.budget.plateau_trials or 0):
        return False
    gain = max((trial.value or 0.0 for trial in sound if trial.number in recent), default=before) - before
    return gain <= margin_of(ended, file.pruner)


def pause(study: optuna.Study) -> None:
    """No trial is started until it is resumed. Raises InputError for a study that is over."""
    found = terms.read(ours(study).ask, study._study_id)
    finished = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    if found is not None and (found.ended or finished >= found.budget):
        raise InputError(f"study {study.study_name} is over; there is nothing to pause")
    terms.pause(ours(study).ask, study._study_id)


def resume(study: optuna.Study) -> None:
    """Raises InputError for a study that goes on anyway."""
    storage = ours(study)
    found = terms.read(storage.ask, study._study_id)
    is_paused = found is not None and found.paused
    if pause_reason(study) is not None:
        forgive(study)
    elif not is_paused:
        raise InputError(f"study {study.study_name} is not paused")
    terms.resume(storage.ask, study._study_id)


def extend(study: optuna.Study, file: StudyFile, trials: int, hours: float, gpu_hours: float) -> StudyFile:
    """By so much more of each, whatever the study file says; a plateau counts from here on.

    Raises InputError for hours without a limit.
    """
    storage, more = ours(study), {"trials": trials, "hours": hours, "gpu_hours": gpu_hours}
    if not any(more.values()):
        raise InputError("by how much? Give --trials, --hours or --gpu-hours")
    for name, amount in more.items():
        if amount and getattr(file.budget, name) is None:
            raise InputError(f"study {study.study_name} has no limit of {name}; nothing to extend")
    before = storage.get_study_system_attrs(study._study_id).get(EXTRA, {})
    storage.set_study_system_attr(study._study_id, EXTRA, {k: before.get(k, 0) + more[k] for k in more})
    storage.set_study_system_attr(study._study_id, EXTENDED, len(study.get_trials(deepcopy=False)))
    file = file.model_copy(update={"budget": raised(file.budget, more)})
    storage.set_study_system_attr(study._study_id, CONFIG, file.model_dump_json())
    manage(study, file, reopen=True)
    return file
