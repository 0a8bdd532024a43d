"""A plan: studies one after another, each from the best of those before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from optuna.trial import FrozenTrial
from pydantic import BaseModel, Field, ValidationError

from hpo.config import (
    MAY_CHANGE,
    Budget,
    SpaceField,
    StudyFile,
    field_of,
    fingerprint,
    searched,
    settings,
    trial_config,
    with_values,
)
from hpo.errors import HpoError, InputError
from hpo.feasible import Floors, best_trials, floors_of, reaches
from hpo.spaces import unlike
from hpo.study import open_study, parameters_of
from hpo.study_file import check_budget, completed
from hpo.yamlfile import Place, read_yaml, validated
from objectives.config import STRICT
from search_spaces.space import (
    Choice,
    FloatRange,
    IntRange,
    Range,
    Space,
    SpaceWithBaselines,
    Value,
    Values,
    is_there,
    label,
    split,
)
from storage.native import PostgresStorage

PHASE = "hpo:phase"  # a study's system attribute: the fingerprint of its phase, before it had a best to start from
OWN = ("name", "space", "budget")  # of each phase
CENTRED = 0.5  # of a range, around the best
MOST = 100  # trials of a phase that are looked at


class Phase(BaseModel):
    model_config = STRICT
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]{0,30}$")]  # of 64 with a dash and the plan's
    budget: Budget
    space: SpaceField
    # What phases before have searched: fixed at the best; searched again around the best; searched again as declared.
    earlier: Literal["fix", "centre", "free"] = "centre"
    top: Annotated[int, Field(ge=1)] = 3  # of the trials so far, tried first


class PlanFile(BaseModel):
    model_config = STRICT
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$")]
    study: dict[str, Any]  # a study file but for OWN
    phases: Annotated[tuple[Phase, ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True)
class Plan:
    name: str
    phases: tuple[Phase, ...]
    files: tuple[StudyFile, ...]  # whole, as if nothing had come before


@dataclass(frozen=True)
class Found:
    """A trial of an earlier phase, and all that it was trained with."""

    name: str
    trial: FrozenTrial
    settings: Values


def read_plan(path: Path) -> Plan:
    """Every phase is checked before the first begins. Raises InputError with the line, DataError."""
    written, place = read_yaml(path, PlanFile), Place(path)
    for key in OWN:
        if key in written.study:
            raise place.below("study", key).error(f"each phase has its own {key}; remove it here")
    if "warm_start" in written.study:
        raise place.below("study", "warm_start").error(
            "phases start from those before; warm_start is for single studies"
        )
    names = [phase.name for phase in written.phases]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise place.below("phases", number, "name").error(f"two phases have the same name, {name!r}")
    files: list[StudyFile] = []
    for number, phase in enumerate(written.phases):
        own = {"name": f"{written.name}-{phase.name}", "space": phase.space, "budget": phase.budget}
        where, common = place.below("phases", number), place.below("study")
        file = completed(validated(written.study | own, StudyFile, common), common, where)
        if files:
            _check_follows(file, phase, files, where)
            file = _without_recipes(file, phase)
        check_budget(file, where)
        files.append(file)
    return Plan(written.name, written.phases, tuple(files))


def phase_file(plan: Plan, number: int, storage: PostgresStorage) -> StudyFile:
    """The phase as it was begun, else from the best so far. Raises InputError if it was begun by another plan."""
    fresh = plan.files[number]
    made_from = None
    if fresh.name in optuna.get_all_study_names(storage):  # half made, it has no such attribute
        attributes = storage.get_study_system_attrs(storage.get_study_id_from_name(fresh.name))
        made_from = attributes.get(PHASE)
    if made_from == _fingerprint(plan, number):
        stored = open_study(storage, fresh.name)[1]
        return stored.model_copy(update={key: getattr(fresh, key) for key in MAY_CHANGE})
    if made_from is not None:
        raise InputError(f"study {fresh.name!r} exists, of another plan; give the plan another name")
    return _carried(fresh, plan, number, storage) if number else fresh


def mark(plan: Plan, number: int, study: optuna.Study) -> None:
    """The study is this phase of this plan, and goes on as it was begun."""
    study._storage.set_study_system_attr(study._study_id, PHASE, _fingerprint(plan, number))


def _fingerprint(plan: Plan, number: int) -> str:
    """Of what decides how the phase begins, but for what came before."""
    phase = plan.phases[number]
    return f"{number} {fingerprint(plan.files[number])} {phase.earlier} {phase.top}"


def found_before(plan: Plan, number: int, storage: PostgresStorage) -> list[Found]:
    """The best trials of all phases before, the best first."""
    found = []
    for phase, fresh in zip(plan.phases[:number], plan.files, strict=False):
        study, file = open_study(storage, fresh.name)
        for trial in best_trials(study.get_trials(deepcopy=False), file, MOST):
            config = trial_config(file, parameters_of(trial))
            found.append(Found(f"{phase.name}#{trial.number}", trial, settings(config)))
    floors = floors_of_plan(plan, storage)
    found.sort(key=lambda one: (not reaches(one.trial, floors), -(one.trial.value or 0.0)))
    unlike: dict[str, Found] = {}
    for one in found:
        unlike.setdefault(label(one.settings), one)
    return list(unlike.values())


def floors_of_plan(plan: Plan, storage: PostgresStorage) -> Floors:
    """What the baselines of the first phase have reached."""
    study, file = open_study(storage, plan.files[0].name)
    return floors_of(study.get_trials(deepcopy=False), file)


def _check_follows(file: StudyFile, phase: Phase, before: list[StudyFile], where: Place) -> None:
    """Whatever the best so far will be, this phase can start from it."""
    known = {name for earlier in before for name in searched(earlier)}
    if phase.earlier == "fix" and not searched(file).keys() - known:
        raise where.error(f"phase {phase.name!r} has nothing left to search when what was searched before is fixed")
    if "model" in known and "model" not in searched(file):
        raise where.below("space").error("an earlier phase searches the model; name its choices here, too")
    own = len(phase.space.baselines) if isinstance(phase.space, SpaceWithBaselines) else 0
    if phase.top + own > file.budget.trials:
        first = f"the {phase.top} best so far and {own} baselines"
        name = "top" if "top" in phase.model_fields_set else "budget"
        raise where.below(name).error(f"{file.budget.trials} trials are too few for {first}")
    for name, parameter in searched(file).items():
        for earlier in before if isinstance(parameter, Choice) else ():
            choice = searched(earlier).get(name)
            standing = settings(earlier)[field_of(name)]
            missing = [
                value
                for value in (choice.choices if isinstance(choice, Choice) else (standing,))
                if isinstance(parameter, Choice) and value not in parameter.choices
            ]
            if missing:
                raise where.below("space", "parameters", name, "choices").error(
                    f"{name} may be {missing[0]!r} after {earlier.name!r}; add that to its choices"
                )


def _without_recipes(file: StudyFile, phase: Phase) -> StudyFile:
    """They ran in the first phase."""
    assert isinstance(file.space, SpaceWithBaselines)
    own = phase.space.baselines if isinstance(phase.space, SpaceWithBaselines) else {}
    kept = {name: values for name, values in file.space.baselines.items() if name in own}
    return file.model_copy(update={"space": file.space.model_copy(update={"baselines": kept})})


def _carried(fresh: StudyFile, plan: Plan, number: int, storage: PostgresStorage) -> StudyFile:
    """The phase from the best so far: what it does not search is set so, what was searched before is narrowed."""
    if not (found := found_before(plan, number, storage)):
        raise HpoError(f"no trial before phase {plan.phases[number].name!r} was completed: nothing to start from")
    assert isinstance(fresh.space, SpaceWithBaselines)
    best, phase = found[0].settings, plan.phases[number]
    known = {name for file in plan.files[:number] for name in searched(file)}
    parameters = {
        name: _from_best(parameter, best[field_of(name)], phase)
        if name in known and isinstance(parameter, Range) and is_there(parameter, best)
        else parameter
        for name, parameter in fresh.space.parameters.items()
    }
    space, fixed = split(parameters)
    first = {one.name: one.settings for one in found[: phase.top] if _fits(one.settings, space)}
    whole = SpaceWithBaselines(parameters={**space, **fixed}, baselines=fresh.space.baselines, first=first)
    try:
        carried = with_values(fresh, best | fixed)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise HpoError(f"what phase {phase.name!r} fixes does not go with the best so far: {why}") from None
    constraints = fresh.constraints.model_copy(update={"floors": dict(floors_of_plan(plan, storage))})
    return carried.model_copy(update={"space": whole, "constraints": constraints})


def _from_best(parameter: Range, best: Value, phase: Phase) -> Range | Value:
    if phase.earlier == "fix":
        return best
    if phase.earlier == "free" or isinstance(parameter, Choice) or parameter.step is not None:
        return parameter
    return around(parameter, float(best))


def around(parameter: FloatRange | IntRange, best: float) -> FloatRange | IntRange:
    """A part of the range, of its logarithm where that is what is drawn, with the best in the middle if it can be."""
    into, back = (math.log, math.exp) if parameter.log else (float, float)
    low, high = into(parameter.low), into(parameter.high)
    half = CENTRED * (high - low) / 2
    middle = min(max(into(min(max(best, parameter.low), parameter.high)), low + half), high - half)
    start, end = back(middle - half), back(middle + half)
    if isinstance(parameter, IntRange):
        bounds = {"low": max(math.floor(start), parameter.low), "high": min(math.ceil(end), parameter.high)}
        return parameter.model_copy(update=bounds)
    rounded = float(f"{start:.4g}"), float(f"{end:.4g}")
    return parameter.model_copy(update={"low": max(rounded[0], parameter.low), "high": min(rounded[1], parameter.high)})


def _fits(values: Values, space: Space) -> bool:
    there = Values()
    for name, parameter in space.items():
        if is_there(parameter, there):
            there[name] = values[field_of(name)]
            if unlike(parameter, there[name]):
                return False
    return True
