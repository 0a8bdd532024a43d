"""Base models in a space: which there are, of which kinds, and parameters with bounds for one kind alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpo.config import StudyFile
from hpo.yamlfile import Place
from objectives.config import STATIC
from search_spaces.space import Choice, Parameter, Range, Value


def model_choices(file: StudyFile, parameters: dict[str, Parameter]) -> tuple[str, ...]:
    own = parameters.get("model", file.model)
    return tuple(map(str, own.choices if isinstance(own, Choice) else [own]))


def by_kind(models: Sequence[str]) -> dict[str, list[str]]:
    kinds = {"static": [name for name in models if name.startswith(STATIC)]}
    kinds["transformer"] = [name for name in models if name not in kinds["static"]]
    return {kind: names for kind, names in kinds.items() if names}


def only_for(models: list[str], parameter: Parameter) -> Parameter:
    if not isinstance(parameter, Range):
        raise TypeError("a preset fixes nothing for one kind of models")
    return parameter.model_copy(update={"when": {"model": tuple(models), **parameter.when}})


def absolute_model(model: str, folder: Path) -> str:
    kind, name = (STATIC, model.removeprefix(STATIC)) if model.startswith(STATIC) else ("", model)
    return f"{kind}{(folder / name).resolve()}" if name and (folder / name).is_dir() else model


def with_whole_paths(name: str, parameter: Parameter, folder: Path) -> Parameter:
    """Base models that are folders are named from where the file is; what is no text is refused elsewhere."""

    def whole(model: Value) -> Value:
        return absolute_model(model, folder) if isinstance(model, str) else model

    if not isinstance(parameter, Range):
        return whole(parameter) if name == "model" else parameter
    change: dict[str, Any] = {}
    if isinstance(parameter, Choice) and name == "model":
        change["choices"] = tuple(map(whole, parameter.choices))
    if models := parameter.when.get("model"):
        change["when"] = {**parameter.when, "model": tuple(map(whole, models))}
    return parameter.model_copy(update=change)


def check_models(file: StudyFile, place: Place, space_place: Place, parameters: dict[str, Parameter]) -> None:
    """Raises InputError with the line."""
    own = parameters.get("model", file.model)
    named = own.choices if isinstance(own, Choice) else [own]
    if any(not isinstance(name, str) or not name.removeprefix(STATIC) for name in named):
        raise space_place.below("parameters", "model").error("a model is the name of one, or a folder")
    models = model_choices(file, parameters)
    if isinstance(file.model_revision, dict) and (unknown := sorted(file.model_revision.keys() - {*models})):
        raise place.below("model_revision").error(f"no base model {unknown[0]!r}; there are {', '.join(models)}")


def for_kinds(place: Place, parameters: dict[str, Parameter], models: Sequence[str]) -> dict[str, Parameter]:
    """`learning_rate@static` is there for static models alone. Raises InputError with the line."""
    kinds, found = by_kind(models), dict[str, Parameter]()
    for name, parameter in parameters.items():
        field, at, kind = name.partition("@")
        where = place.below("parameters", name)
        if not at:
            found[name] = parameter
            continue
        if kind not in kinds or field == "model":
            raise where.error(f"{name}: no base model is of kind {kind!r} here; kinds: {', '.join(kinds)}")
        if field in parameters:
            raise where.error(f"{name} stands beside {field}, which counts for all models; keep one")
        if len(kinds) > 1 and not isinstance(parameter, Range):
            raise where.error(f"{name} is fixed for one kind of models alone; give it a range, or fix {field} for all")
        searched_alone = len(kinds) == 1 or (isinstance(parameter, Range) and "model" in parameter.when)
        found[name] = parameter if searched_alone else only_for(kinds[kind], parameter)
    return found
