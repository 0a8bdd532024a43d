"""What a trial is to be trained with: drawn by a sampler of Optuna, never what another trial has."""

from __future__ import annotations

import hashlib
import random
import warnings
from itertools import islice
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.config import StudyFile, searched
from hpo.study import PROPOSED_BY
from search_spaces.space import is_finite, label, points, suggest
from storage.native import PostgresStorage

MOST_POINTS = 100_000  # of a finite space
DRAWS = 10  # of one trial; then what is left of a finite space is looked through
STARTUP = 4, 10  # trials at random, before there is anything to learn from: a quarter of the budget within these
SAMPLER_SEED = "sampler_seed"  # a trial's user attribute
FIXED = "fixed_params"  # a trial's system attribute, of Optuna: values that its samplers are not asked for


def propose(storage: PostgresStorage, study: optuna.Study, file: StudyFile, trial_id: int) -> optuna.Trial:
    """The claimed trial with its parameters, all of them stored.

    No trial that runs has the same ones, and in a finite space no trial at all while there are others left.
    """
    found = storage.get_trial(trial_id)
    if found.params or FIXED in found.system_attrs:  # cut short before, or wanted as it is
        return _as_it_is(storage, study, file, found)
    for draw in range(DRAWS):
        sampler, seed = make_sampler(file, found.number, draw)
        trial = _asked(study, sampler, file, trial_id)
        trial.set_user_attr(PROPOSED_BY, _in_words(study, file))
        trial.set_user_attr(SAMPLER_SEED, seed)
        if _store(storage, study, file, trial):
            return trial
        storage.forget(trial_id)
    return _left_over(storage, study, file, found)


def make_sampler(file: StudyFile, number: int, draw: int = 0) -> tuple[optuna.samplers.BaseSampler, int]:
    """Seeded by study, trial and draw: no two workers ever draw with the same seed. The sampler, and its seed."""
    digest = hashlib.sha256(f"{file.seed}:{number}:{draw}".encode() if draw else f"{file.seed}:{number}".encode())
    seed = int.from_bytes(digest.digest()[:4], "big")
    if file.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed), seed
    if file.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup_trials(file)), seed
    is_conditional = any(parameter.when for parameter in searched(file).values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup_trials(file), group=is_conditional)
    return sampler, seed


def startup_trials(file: StudyFile) -> int:
    least, most = STARTUP
    return min(max(file.budget.trials // 4, least), most)


def _asked(study: optuna.Study, sampler: Any, file: StudyFile, trial_id: int) -> optuna.Trial:
    study.sampler = sampler
    trial = optuna.Trial(study, trial_id)
    suggest(searched(file), trial)
    return trial


def _as_it_is(storage: PostgresStorage, study: optuna.Study, file: StudyFile, found: FrozenTrial) -> optuna.Trial:
    trial = _asked(study, make_sampler(file, found.number)[0], file, found._trial_id)
    if PROPOSED_BY not in found.user_attrs:
        trial.set_user_attr(PROPOSED_BY, "somebody by hand")
    if not storage.flush(found._trial_id, params_hash=_hash(file, trial)):
        storage.flush(found._trial_id)
    return trial


def _store(storage: PostgresStorage, study: optuna.Study, file: StudyFile, trial: optuna.Trial) -> bool:
    """False, and nothing stored, for parameters that another trial has."""
    if is_finite(searched(file)) and label(trial.params) in _tried(study, trial.number):
        return False
    return storage.flush(trial._trial_id, params_hash=_hash(file, trial))


def _left_over(storage: PostgresStorage, study: optuna.Study, file: StudyFile, found: FrozenTrial) -> optuna.Trial:
    tried, number = _tried(study, found.number), found.number
    space = points(searched(file)) if is_finite(searched(file)) else iter(())
    left = [values for values in islice(space, MOST_POINTS) if label(values) not in tried]
    random.Random(make_sampler(file, number, DRAWS)[1]).shuffle(left)
    for values in left:
        storage.set_trial_system_attr(found._trial_id, FIXED, values)
        trial = _asked(study, make_sampler(file, number)[0], file, found._trial_id)
        trial.set_user_attr(PROPOSED_BY, f"one of {len(left)} points that were left")
        if _store(storage, study, file, trial):
            return trial
        storage.forget(found._trial_id)
    trial = _asked(study, make_sampler(file, number)[0], file, found._trial_id)
    trial.set_user_attr(PROPOSED_BY, "chance, as nothing was left that no trial has")
    storage.flush(found._trial_id)
    return trial


def _tried(study: optuna.Study, number: int) -> set[str]:
    others = (trial for trial in study.get_trials(deepcopy=False) if trial.number != number)
    return {label(trial.params or trial.system_attrs.get(FIXED, {})) for trial in others}


def _hash(file: StudyFile, trial: optuna.Trial) -> str:
    once = "once:" if is_finite(searched(file)) else ""
    return once + hashlib.sha256(label(trial.params).encode()).hexdigest()


def _in_words(study: optuna.Study, file: StudyFile) -> str:
    known = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))
    startup = startup_trials(file)
    if file.sampler != "random" and known >= startup:
        return f"{file.sampler}, from {known} trials"
    return "random" if file.sampler == "random" else f"random, as fewer than {startup} trials have ended"
