"""Studies in the database: made once from a study file, opened by name, never mixed with another configuration."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError
from sqlalchemy import URL

from hpo.config import Budget, StudyFile, baselines, field_of, identity, models, revisions, searched, settings
from hpo.errors import InputError, SetupError
from objectives.model_files import pin
from search_spaces.space import SpaceWithBaselines, Values, is_there
from storage import datasets, terms
from storage.native import PostgresStorage
from storage.schema import creation_lock

CONFIG = "hpo:config"
VERSIONS = "hpo:versions"
DATA = "hpo:data"  # what its incidents hold, in numbers
EXTRA = "hpo:extra"  # beyond the file's budget, by `hpo study extend`
# A trial's user attributes: the name of its recipe; what that sets beyond the space; the trial that it is a copy of.
BASELINE, OVERRIDES, COPIED = "baseline", "overrides", "copied_from"
PROPOSED_BY = "proposed_by"  # in words
NOT_COMPARED = ("name", "space", "sampler", "pruner", "constraints", "warm_start", "seed", "head")  # change no score
FIRST = 5  # of a study whose trials do not compare, to be tried first
COMMIT = re.compile(r".+@[0-9a-f]{40}")  # of the hub, as a model's version was pinned before
PACKAGES = ("incident-hpo", "optuna", "sentence-transformers", "transformers", "torch", "numpy")


def create_study(
    url: URL,
    storage: PostgresStorage,
    file: StudyFile,
    dataset: bytes | None = None,
    enqueue: Callable[[optuna.Study], None] = lambda study: None,
) -> optuna.Study:
    """Makes the study, or opens it if it was made from the same configuration; its budget becomes the file's.

    `dataset` is what was read from its incidents, for workers on other boxes; `enqueue` adds trials before any worker
    may begin. Its model is the version at hand when it was made. Raises InputError if the name is taken by another
    configuration, which stays as it is, and ModelError.
    """
    with creation_lock(url):
        if file.name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=file.name, storage=storage)
            file = _as_stored(study, file)
            if _is_blank(study):
                _check_warm_start(storage, file)
        else:
            file = _pinned(file)
            _check_warm_start(storage, file)
            study = optuna.create_study(study_name=file.name, storage=storage, direction="maximize")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(["spearman"])  # how the dashboard labels its axes
        # Each time anew: the budget, the targets and the place of the data may change.
        manage(study, file, reopen=_is_blank(study) or _stored_file(study).budget != file.budget)
        if dataset is not None:
            sha256 = datasets.store(storage.ask, study._study_id, dataset)
            file = file.model_copy(update={"incidents": file.incidents.model_copy(update={"dataset": sha256})})
        storage.set_study_system_attr(study._study_id, CONFIG, file.model_dump_json())
        _enqueue_all(study, file)
        enqueue(study)
        if VERSIONS not in storage.get_study_system_attrs(study._study_id):
            for name in file.warm_start:
                _warm_start(storage, study, file, name)
            manage(study, file, reopen=False)
            storage.set_study_system_attr(study._study_id, VERSIONS, installed_versions())  # last: the study is made
    return study


def open_study(storage: optuna.storages.BaseStorage, name: str) -> tuple[optuna.Study, StudyFile]:
    """Raises InputError for a name that is not there or was made by something else."""
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none yet"
        raise InputError(f"no study {name!r} in this database; there are: {names}") from None
    return study, _stored_file(study)


def trial_of(study: optuna.Study, number: int) -> FrozenTrial:
    """Raises InputError for a number that the study does not have."""
    trials = study.get_trials(deepcopy=False)
    if (trial := next((trial for trial in trials if trial.number == number), None)) is None:
        raise InputError(f"study {study.study_name!r} has no trial {number}; it has {len(trials)}, from 0 on")
    return trial


def ours(study: optuna.Study) -> PostgresStorage:
    """The storage of a study that open_study returned."""
    assert isinstance(study._storage, PostgresStorage)
    return study._storage


def refuse_other_versions(study: optuna.Study) -> None:
    """Scores of other versions do not compare. Raises SetupError."""
    stored = study._storage.get_study_system_attrs(study._study_id).get(VERSIONS)
    if stored is None:
        raise SetupError(f"study {study.study_name!r} is half made; run `hpo create` with its file again")
    here = installed_versions()
    differing = [f"{name} {stored[name]} (here {here[name]})" for name in PACKAGES if stored[name] != here[name]]
    if differing:
        raise SetupError(f"study {study.study_name!r} was made with {', '.join(differing)}; install those versions")


def installed_versions() -> dict[str, Any]:
    return {name: version(name) for name in PACKAGES}


def is_copied(trial: FrozenTrial) -> bool:
    """Of another study: it counts for what is known, not for what was done here."""
    return COPIED in trial.user_attrs


def parameters_of(trial: FrozenTrial | optuna.Trial) -> Values:
    """All that differs from the study file: what was searched, and what a baseline sets beyond that."""
    values: Values = trial.params | trial.user_attrs.get(OVERRIDES, {})
    return values


def is_baseline(trial: FrozenTrial | optuna.Trial) -> bool:
    return BASELINE in trial.user_attrs


def _pinned(file: StudyFile) -> StudyFile:
    pins = {model: _pin(model, revisions(file).get(model)) for model in models(file)}
    return file.model_copy(update={"model_revision": pins if len(pins) > 1 else pins[file.model]})


def _pin(model: str, before: str | None) -> str:
    return before if before and COMMIT.fullmatch(before) else pin(model, before)


def raised(budget: Budget, more: Mapping[str, float]) -> Budget:
    """By so much of each that has a limit."""
    limits = {name: getattr(budget, name) for name in more}
    return budget.model_copy(update={name: limit and limit + more[name] for name, limit in limits.items()})


def _as_stored(study: optuna.Study, file: StudyFile) -> StudyFile:
    """The file with the model's version that the study was made with. Raises InputError if it differs elsewhere."""
    if _is_blank(study):
        return _pinned(file)  # its maker died at once
    stored = _stored_file(study)
    if file.model_revision is not None:
        file = _pinned(file)
    elif models(file) == models(stored):
        file = file.model_copy(update={"model_revision": stored.model_revision})
    before, now = identity(stored), identity(file)
    if changed := [key for key in now if now[key] != before[key]]:
        raise InputError(
            f"study {file.name!r} exists with another configuration (other {', '.join(changed)}). "
            "Give the file another name, or run the file that the study was made from"
        )
    extra = study._storage.get_study_system_attrs(study._study_id).get(EXTRA, {})
    return file.model_copy(update={"budget": raised(file.budget, extra)})


def _is_blank(study: optuna.Study) -> bool:
    """As create_study makes it, and nothing since."""
    attributes = study._storage.get_study_system_attrs(study._study_id)
    is_ours = study.direction == optuna.study.StudyDirection.MAXIMIZE and not study.get_trials(deepcopy=False)
    return CONFIG not in attributes and is_ours


def _stored_file(study: optuna.Study) -> StudyFile:
    attributes = study._storage.get_study_system_attrs(study._study_id)
    if CONFIG not in attributes:
        raise InputError(f"study {study.study_name!r} was not made by `hpo create` or `hpo run`; choose another name")
    try:
        return StudyFile.model_validate_json(attributes[CONFIG])
    except ValidationError:
        made_with = attributes.get(VERSIONS, {}).get("incident-hpo", "another")
        raise SetupError(
            f"study {study.study_name!r} cannot be read by this version ({version('incident-hpo')}); "
            f"it was made with {made_with}. Install that, or choose another name"
        ) from None


def manage(study: optuna.Study, file: StudyFile, *, reopen: bool) -> None:
    """The budget is the file's from now on; trials copied from other studies do not count."""
    copied = sum(is_copied(trial) for trial in study.get_trials(deepcopy=False))
    trials, hours, gpu_hours = file.budget.trials + copied, file.budget.hours, file.budget.gpu_hours
    terms.manage(ours(study).ask, study._study_id, trials, file.lease_s, hours, gpu_hours, reopen=reopen)


def _enqueue_all(study: optuna.Study, file: StudyFile) -> None:
    there = _proposals(study)
    assert isinstance(file.space, SpaceWithBaselines)
    for name, values in baselines(file).items():
        if (proposed := f"baseline {name}") not in there:
            _enqueue(study, file, values, {BASELINE: name, PROPOSED_BY: proposed})
    for name, values in file.space.first.items():
        if (proposed := f"{name}, of the best so far") not in there:
            _enqueue(study, file, values, {PROPOSED_BY: proposed})


def _enqueue(study: optuna.Study, file: StudyFile, values: Values, attributes: dict[str, Any]) -> None:
    """What the space has is its parameters, within the bounds or not; the rest goes beside them."""
    standing = settings(file)
    values = {field_of(key): value for key, value in values.items()}  # of bounds for a kind of model
    wanted, parameters = standing | values, Values()
    for key, parameter in searched(file).items():
        if is_there(parameter, parameters):
            parameters[key] = wanted[field_of(key)]
    suggested = set(map(field_of, parameters))
    overrides = {key: value for key, value in values.items() if key not in suggested and value != standing.get(key)}
    study.enqueue_trial(parameters, user_attrs=attributes | ({OVERRIDES: overrides} if overrides else {}))


def _check_warm_start(storage: PostgresStorage, file: StudyFile) -> None:
    for name in file.warm_start:
        if searched(open_study(storage, name)[1]) != searched(file):
            raise InputError(f"warm_start: study {name!r} searches another space; only one with the same can be used")


def _warm_start(storage: PostgresStorage, study: optuna.Study, file: StudyFile, name: str) -> None:
    """Trials of a study of the same kind come with their curves and scores; of others, the best are tried first."""
    other, theirs = open_study(storage, name)
    there = _proposals(study)
    ended = [trial for trial in other.get_trials() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if _comparable(theirs) == _comparable(file):
        for trial in ended:
            trial.set_user_attr(COPIED, trial.user_attrs.get(COPIED, f"{name}#{trial.number}"))
            if trial.user_attrs[COPIED] not in there:
                storage.create_new_trial(study._study_id, trial)  # add_trial refuses what lies outside the bounds
        return
    complete = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    complete.sort(key=lambda trial: (max(trial.constraints.values(), default=0) > 0, -(trial.value or 0.0)))
    for trial in complete[:FIRST]:
        if (proposed := f"{name}#{trial.number}, of the best so far") not in there:
            _enqueue(study, file, parameters_of(trial), {PROPOSED_BY: proposed})


def _proposals(study: optuna.Study) -> set[str | None]:
    """What its trials are copies of, or who proposed them."""
    trials = study.get_trials(deepcopy=False)
    return {trial.user_attrs.get(COPIED, trial.user_attrs.get(PROPOSED_BY)) for trial in trials}


def _comparable(file: StudyFile) -> dict[str, Any]:
    """What must be equal for scores of two studies to compare."""
    return {key: value for key, value in identity(file).items() if key not in NOT_COMPARED}
