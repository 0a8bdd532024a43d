"""What a study file says of its space, checked against the configuration of a trial before anything else happens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

import search_spaces
from hpo.config import StudyFile, with_values
from hpo.errors import InputError
from hpo.export import read_best_file
from hpo.yamlfile import Place, read_yaml
from objectives.config import STATIC, Mining, Training
from search_spaces.space import (
    Choice,
    Parameter,
    Preset,
    Range,
    Recipes,
    Space,
    SpaceWithBaselines,
    Value,
    Values,
    edges,
    is_there,
    problems,
    split,
)

FOLDER = Path(search_spaces.__path__[0])
# By phase; the last is all of them at once, with the bounds of the first that has a parameter.
PRESETS = {name: (name,) for name in ("quick_wins", "data", "advanced")} | {"full": ("quick_wins", "data", "advanced")}
NOT_SEARCHED = ("precision",)  # it is the device's
SECTIONS: dict[str, type[BaseModel]] = {"training": Training, "mining": Mining}


@dataclass(frozen=True)
class Written:
    """A space as a file has it, and where."""

    space: SpaceWithBaselines
    place: Place


def read_space(file: StudyFile, place: Place, space_place: Place) -> StudyFile:
    """The file with its space written out, fixed values in the sections, too. Raises InputError with the line.

    A file sets or searches a parameter; in a plan, whose spaces stand elsewhere, a phase may search what was set.
    """
    written = _written(file, space_place)
    if written.space.first:
        raise written.place.below("first").error("unknown key 'first'; configurations to run first are baselines")
    parameters = _merged(written, file.model)
    _check_names(written.place, parameters)
    own = written.space.parameters
    for location, message in problems(parameters):
        if location[0] in own:
            raise written.place.below("parameters", *location).error(message)
    space, fixed = split(parameters)
    if not space:
        raise written.place.below("parameters").error("at least one parameter must be searched")
    if space_place == place.below("space"):
        _check_searched_once(file, place, written, parameters)
    file = _with_fixed(file, written.place.below("parameters"), fixed)
    for location, values in edges(space):
        _put(file, written.place.below("parameters", *location), values)
    baselines = {
        name: _baseline(file, written, space, name, values) for name, values in _recipes(file, written.space).items()
    }
    whole = SpaceWithBaselines(parameters={**space, **fixed}, baselines=dict(baselines))
    return file.model_copy(update={"space": whole})


def preset_parameters(name: str, model: str) -> dict[str, Parameter]:
    """For the kind of model that is fine-tuned."""
    merged: dict[str, Parameter] = {}
    for part in PRESETS[name]:
        preset = read_yaml(FOLDER / f"{part}.yaml", Preset)
        own = preset.static if model.startswith(STATIC) else preset.transformer
        merged = own | preset.both | merged
    return merged


def recipes(model: str) -> dict[str, Values]:
    found = read_yaml(FOLDER / "recipes.yaml", Recipes)
    return found.static if model.startswith(STATIC) else found.transformer


def _written(file: StudyFile, place: Place) -> Written:
    if isinstance(file.space, SpaceWithBaselines):
        return Written(file.space, place)
    if not file.space.endswith((".yaml", ".yml")):
        return Written(SpaceWithBaselines(preset=file.space), place)
    path = place.path.parent / file.space
    if not path.is_file():
        raise place.error(f"no file {path}; give a preset ({', '.join(PRESETS)}), a file, or the space itself")
    return Written(read_yaml(path, SpaceWithBaselines), Place(path))


def _merged(written: Written, model: str) -> dict[str, Parameter]:
    preset = written.space.preset
    if preset is None:
        return written.space.parameters
    if preset not in PRESETS:
        raise written.place.below("preset").error(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    return preset_parameters(preset, model) | written.space.parameters


def _recipes(file: StudyFile, space: SpaceWithBaselines) -> dict[str, Values | str]:
    return {**(recipes(file.model) if space.preset else {}), **space.baselines}


def _check_names(place: Place, parameters: dict[str, Parameter]) -> None:
    known = [name for section in SECTIONS.values() for name in section.model_fields if name not in NOT_SEARCHED]
    for name in parameters:
        if name not in known:
            raise place.below("parameters", name).error(
                f"no parameter {name!r} in training or mining; there are {', '.join(known)}"
            )


def _check_searched_once(file: StudyFile, place: Place, written: Written, parameters: dict[str, Parameter]) -> None:
    for section in SECTIONS:
        for name in [name for name in parameters if name in getattr(file, section).model_fields_set]:
            hint = f"space: {{preset: {written.space.preset}, parameters: {{{name}: VALUE}}}}"
            mend = f"fix it there, {hint}" if written.space.preset else "keep one"
            raise place.below(section, name).error(f"{section}.{name} is in the space, too; {mend}")


def _with_fixed(file: StudyFile, place: Place, fixed: Values) -> StudyFile:
    """Together, as one may need the other. Raises InputError with the line of the last that a contradiction names."""
    try:
        return _put(file, place, fixed)
    except InputError as error:
        named = [name for name in fixed if f"{name} {fixed[name]}" in str(error)]
        raise (_refused(file, place.below(*named[-1:]), fixed) or error) from None


def _put(file: StudyFile, place: Place, values: Values) -> StudyFile:
    """The file with the values. A value that no trial can train with is refused now, not by a worker."""
    if error := _refused(file, place, values):
        raise error
    return file.model_copy(update={name: with_values(getattr(file, name), values) for name in SECTIONS})


def _refused(file: StudyFile, place: Place, values: Values) -> InputError | None:
    for section in SECTIONS:
        try:
            with_values(getattr(file, section), values)
        except ValidationError as error:
            first = error.errors()[0]
            names = [str(name) for name in first["loc"][:1]]
            what = "".join(f"{name} cannot be {values[name]!r}: " for name in names)
            return place.below(*names).error(f"{what}{first['msg'].removeprefix('Value error, ')}")
    return None


def _baseline(file: StudyFile, written: Written, space: Space, name: str, given: Values | str) -> Values:
    """Raises InputError for a key that no trial has, or a value that none can train with."""
    place = written.place.below("baselines", name)
    values = _values_of(place, file, given) if isinstance(given, str) else given
    known = {field for section in SECTIONS.values() for field in section.model_fields}
    for key in values:
        if key not in known:
            raise place.below(key).error(f"baseline {name!r}: no parameter {key!r} in training or mining")
    whole = _put(file, place, values)
    standing = {**whole.training.model_dump(), **whole.mining.model_dump()}
    there = Values()
    for key, parameter in space.items():
        if not is_there(parameter, there):
            continue
        there[key] = standing[key]
        if problem := unlike(parameter, standing[key]):
            place = place if name in written.space.baselines else written.place.below("parameters")
            mend = f"give baseline {name!r} another {key}, under `baselines`"
            raise place.below(key).error(f"baseline {name!r}: {key} is {standing[key]!r}, {problem}; {mend}")
    return values


def unlike(parameter: Range, value: Value) -> str | None:
    """Why Optuna could not record the value as one of the parameter's; outside of bounds it can."""
    if isinstance(parameter, Choice):
        return None if value in parameter.choices else f"not one of {list(parameter.choices)}"
    if not isinstance(value, int | float):
        return "not a number, as the space has it"
    return "which a logarithmic range cannot hold" if parameter.log and value <= 0 else None


def _values_of(place: Place, file: StudyFile, given: str) -> Values:
    """Of a best.yaml: all that its trial trained with."""
    try:
        config = read_best_file(place.path.parent / given)[1].config
    except InputError as error:
        raise place.error(str(error)) from None
    if config.model != file.model:
        raise place.error(f"{given} is of model {config.model}, this study of {file.model}")
    values: dict[str, Any] = {}
    for section in (config.training, config.mining):
        values |= section.model_dump(exclude={"precision"})
    return values
