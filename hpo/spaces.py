"""What a study file says of its space, checked against the configuration of a trial before anything else happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

import search_spaces
from hpo.base_models import by_kind, check_models, for_kinds, model_choices, only_for, with_whole_paths
from hpo.best_file import read_best_file
from hpo.config import OF_THE_FILE, SECTIONS, StudyFile, field_of, settings, trial_config, with_values
from hpo.errors import InputError
from hpo.yamlfile import Place, read_yaml
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
    own = written.space.parameters
    _check_names(file, written.place, own)
    names = model_choices(file, own)
    check_models(file, place, written.place, own)
    parameters = for_kinds(written.place, _merged(written, names), names)
    for location, message in problems(parameters):
        if location[0] in own:
            raise written.place.below("parameters", *location).error(message)
    space, fixed = split(parameters)
    if not space:
        raise written.place.below("parameters").error("at least one parameter must be searched")
    if space_place == place.below("space"):
        _check_searched_once(file, place, written, parameters)
    file = file.model_copy(update={"model": names[0]})
    file = _with_fixed(file, written.place.below("parameters"), fixed)
    for location, values in edges(space):
        for name in names if "model" in space else [file.model]:
            _put(file, written.place.below("parameters", *location), Values(model=name) | values)
    given: dict[str, Values | str] = {**recipes(names)} if written.space.preset else {}
    given |= written.space.baselines
    baselines = {name: _baseline(file, written, space, name, values) for name, values in given.items()}
    whole = SpaceWithBaselines(parameters={**space, **fixed}, baselines=dict(baselines))
    return file.model_copy(update={"space": whole})


def preset_parameters(name: str, models: Sequence[str]) -> dict[str, Parameter]:
    """For the models' kinds; where there are two, what differs is there for each, as `learning_rate@static`."""
    merged: dict[str, Parameter] = {}
    kinds = by_kind(models)
    for part in PRESETS[name]:
        preset = read_yaml(FOLDER / f"{part}.yaml", Preset)
        own = dict[str, Parameter]()
        for kind, names in kinds.items():
            bounds: dict[str, Parameter] = getattr(preset, kind)
            own |= bounds if len(kinds) == 1 else {f"{key}@{kind}": only_for(names, bounds[key]) for key in bounds}
        merged = own | preset.both | merged
    return merged


def _written(file: StudyFile, place: Place) -> Written:
    found = _as_written(file, place)
    folder = found.place.path.parent
    parameters = {name: with_whole_paths(name, found.space.parameters[name], folder) for name in found.space.parameters}
    return Written(found.space.model_copy(update={"parameters": parameters}), found.place)


def _as_written(file: StudyFile, place: Place) -> Written:
    if isinstance(file.space, SpaceWithBaselines):
        return Written(file.space, place)
    if not file.space.endswith((".yaml", ".yml")):
        return Written(SpaceWithBaselines(preset=file.space), place)
    path = place.path.parent / file.space
    if not path.is_file():
        raise place.error(f"no file {path}; give a preset ({', '.join(PRESETS)}), a file, or the space itself")
    return Written(read_yaml(path, SpaceWithBaselines), Place(path))


def _merged(written: Written, models: Sequence[str]) -> dict[str, Parameter]:
    """What stands in the file counts for all kinds of models; the model first, as others may hang on it."""
    preset, own = written.space.preset, written.space.parameters
    if preset is None:
        return own
    if preset not in PRESETS:
        raise written.place.below("preset").error(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    found = preset_parameters(preset, models)
    kept = {name: found[name] for name in found if name in own or field_of(name) not in own}
    return {name: own[name] for name in own if name == "model"} | kept | own


def recipes(models: Sequence[str]) -> dict[str, Values]:
    """For each kind of models, the first of its kind."""
    written, kinds = read_yaml(FOLDER / "recipes.yaml", Recipes), by_kind(models)
    found = dict[str, Values]()
    for kind, names in kinds.items():
        for name, values in getattr(written, kind).items():
            own: Values = values if len(models) == 1 else {"model": names[0], **values}
            found[name if len(kinds) == 1 else f"{name}.{kind}"] = own
    return found


def _check_names(file: StudyFile, place: Place, parameters: dict[str, Parameter]) -> None:
    known = list(settings(file))
    for name in parameters:
        if field_of(name) not in known:
            raise place.below("parameters", name).error(f"no parameter {name!r}; there are {', '.join(known)}")


def _check_searched_once(file: StudyFile, place: Place, written: Written, parameters: dict[str, Parameter]) -> None:
    for name in [name for name in OF_THE_FILE if name in file.model_fields_set and name in parameters]:
        raise place.below(name).error(f"{name} is in the space, too; keep one")
    for section in SECTIONS:
        for name in [name for name in parameters if field_of(name) in getattr(file, section).model_fields_set]:
            hint = f"space: {{preset: {written.space.preset}, parameters: {{{field_of(name)}: VALUE}}}}"
            mend = f"fix it there, {hint}" if written.space.preset else "keep one"
            raise place.below(section, field_of(name)).error(f"{section}.{name} is in the space, too; {mend}")


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
    return with_values(file, values)


def _refused(file: StudyFile, place: Place, values: Values) -> InputError | None:
    try:
        trial_config(file, values)
    except ValidationError as error:
        first = error.errors()[0]
        names = [name for name in values if (field_of(name),) == first["loc"][:1]]
        what = "".join(f"{name} cannot be {values[name]!r}: " for name in names)
        return place.below(*names).error(f"{what}{first['msg'].removeprefix('Value error, ')}")
    return None


def _baseline(file: StudyFile, written: Written, space: Space, name: str, given: Values | str) -> Values:
    """Raises InputError for a key that no trial has, or a value that none can train with."""
    place = written.place.below("baselines", name)
    values = _values_of(place, file, written.space, given) if isinstance(given, str) else given
    for key in values:
        if key not in settings(file) and key != "precision":
            raise place.below(key).error(f"baseline {name!r}: no parameter {key!r}; see: hpo space show full")
    standing = settings(_put(file, place, values))
    there = Values()
    for key, parameter in space.items():
        if not is_there(parameter, there):
            continue
        there[key] = value = standing[field_of(key)]
        if problem := unlike(parameter, value):
            place = place if name in written.space.baselines else written.place.below("parameters")
            mend = f"give baseline {name!r} another {key}, under `baselines`"
            raise place.below(key).error(f"baseline {name!r}: {key} is {value!r}, {problem}; {mend}")
    return values


def unlike(parameter: Range, value: Value) -> str | None:
    """Why Optuna could not record the value as one of the parameter's; outside of bounds it can."""
    if isinstance(parameter, Choice):
        return None if value in parameter.choices else f"not one of {list(parameter.choices)}"
    if not isinstance(value, int | float):
        return "not a number, as the space has it"
    return "which a logarithmic range cannot hold" if parameter.log and value <= 0 else None


def _values_of(place: Place, file: StudyFile, space: SpaceWithBaselines, given: str) -> Values:
    """Of a best.yaml: all that its trial trained with."""
    try:
        config = read_best_file(place.path.parent / given)[1].config
    except InputError as error:
        raise place.error(str(error)) from None
    names = model_choices(file, space.parameters)
    if config.model not in names:
        raise place.error(f"{given} is of model {config.model}, this study of {', '.join(names)}")
    return {name: value for name, value in settings(config).items() if name != "model" or len(names) > 1}
