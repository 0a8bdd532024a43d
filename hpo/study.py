"""Studies in the database: made once from a study file, opened by name, never mixed with another configuration."""

from __future__ import annotations

import hashlib
import warnings
from importlib.metadata import version
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from pydantic import ValidationError
from sqlalchemy import URL

from hpo.config import StudyFile
from hpo.config import identity
from hpo.config import searched
from hpo.errors import InputError
from hpo.errors import SetupError
from objectives.model_files import pin
from storage.native import PostgresStorage
from storage.schema import creation_lock

CONFIG = "hpo:config"
VERSIONS = "hpo:versions"
BASELINE = "baseline"  # a trial's user attribute: the name of the recipe
PACKAGES = ("incident-hpo", "optuna", "sentence-transformers", "transformers", "torch", "numpy")


def create_study(url: URL, storage: PostgresStorage, file: StudyFile, dataset: bytes | None = None) -> optuna.Study:
    """Makes the study, or opens it if it was made from the same configuration; its budget becomes the file's.

    `dataset` is what was read from its incidents, for workers on other boxes. Its model is the version at hand when it
    was made. Raises InputError if the name is taken by another
    configuration, which stays as it is, and ModelError.
    """
    with creation_lock(url):
        if file.name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=file.name, storage=storage)
            file = _as_stored(study, file)
        else:
            file = _pinned(file)
            study = optuna.create_study(study_name=file.name, storage=storage, direction="maximize")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(["spearman"])  # how the dashboard labels its axes
        # Each time anew: the budget, the targets and the place of the data may change.
        storage.manage(study._study_id, file.budget.trials, file.lease_s)
        if dataset is not None:
            sha256 = storage.store_dataset(study._study_id, dataset)
            file = file.model_copy(update={"incidents": file.incidents.model_copy(update={"dataset": sha256})})
        storage.set_study_system_attr(study._study_id, CONFIG, file.model_dump_json())
        _enqueue_baselines(study, file)
        if VERSIONS not in storage.get_study_system_attrs(study._study_id):
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


def make_sampler(file: StudyFile, number: int) -> optuna.samplers.BaseSampler:
    """A sampler for one trial, seeded by study and trial: no two workers ever draw with the same seed."""
    digest = hashlib.sha256(f"{file.seed}:{number}".encode()).digest()
    return optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big"))


def make_pruner(file: StudyFile) -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner(
        n_startup_trials=file.pruner.startup_trials, n_warmup_steps=file.pruner.warmup_examples
    )


def is_baseline(trial: FrozenTrial | optuna.Trial) -> bool:
    return BASELINE in trial.user_attrs


def _pinned(file: StudyFile) -> StudyFile:
    return file.model_copy(update={"model_revision": pin(file.model, file.model_revision)})


def _as_stored(study: optuna.Study, file: StudyFile) -> StudyFile:
    """The file with the model's version that the study was made with. Raises InputError if it differs elsewhere."""
    if _is_blank(study):
        return _pinned(file)  # its maker died at once
    stored = _stored_file(study)
    if file.model_revision is not None:
        file = _pinned(file)
    elif file.model == stored.model:
        file = file.model_copy(update={"model_revision": stored.model_revision})
    before, now = identity(stored), identity(file)
    if changed := [key for key in now if now[key] != before[key]]:
        raise InputError(
            f"study {file.name!r} exists with another configuration (other {', '.join(changed)}). "
            "Give the file another name, or run the file that the study was made from"
        )
    return file


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


def _enqueue_baselines(study: optuna.Study, file: StudyFile) -> None:
    there = {trial.user_attrs.get(BASELINE) for trial in study.get_trials(deepcopy=False)}
    for name, parameters in searched(file).baselines.items():
        if name not in there:
            study.enqueue_trial(dict(parameters), user_attrs={BASELINE: name})
