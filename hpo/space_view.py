"""`hpo space`: what is searched, as it is written in a study file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import optuna
from ruamel.yaml import YAML

from hpo.config import StudyFile
from hpo.errors import InputError
from hpo.spaces import FOLDER, PRESETS, preset_parameters, read_space
from hpo.yamlfile import Place, read_yaml, write_yaml
from objectives.config import STATIC
from search_spaces.space import Range, Space, SpaceWithBaselines, is_finite, points, split, suggest

DEFAULT_MODEL = StudyFile.model_fields["model"].default
MOST_POINTS = 1_000_000  # that are counted


def show(name: str, model: str | None) -> str:
    """YAML for a study file; of a preset with its comments, the reasons of its bounds. Raises InputError."""
    space = _space(name, model)
    size = "without end"
    if is_finite(space):
        number = sum(1 for _ in islice(points(space), MOST_POINTS))
        size = f"{number:,} points" if number < MOST_POINTS else f"{MOST_POINTS:,} points or more"
    heading = f"# {len(space)} parameters, {size}"
    if name not in PRESETS:
        written = {
            key: parameter.model_dump(exclude_defaults=True) if isinstance(parameter, Range) else parameter
            for key, parameter in _file(name, model).parameters.items()
        }
        return f"{heading}\n{write_yaml({'parameters': written}, '').strip()}"
    return f"{heading}\n{_with_reasons(name, model or DEFAULT_MODEL)}".rstrip()


def sample(name: str, model: str | None, number: int, seed: int) -> Iterator[str]:
    """One flow mapping per point. Raises InputError."""
    space = _space(name, model)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    yaml = YAML()
    yaml.default_flow_style, yaml.width = True, 4096
    for _ in range(number):
        out = io.StringIO()
        yaml.dump(suggest(space, study.ask()), out)
        yield out.getvalue().strip()


def _space(name: str, model: str | None) -> Space:
    if name in PRESETS:
        return split(preset_parameters(name, [model or DEFAULT_MODEL]))[0]
    return split(_file(name, model).parameters)[0]


def _file(name: str, model: str | None) -> SpaceWithBaselines:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"no preset {name!r}; there are {', '.join(PRESETS)}, or give a study file")
    file, place = read_yaml(path, StudyFile), Place(path)
    if model is not None:
        file = file.model_copy(update={"model": model})
    space = read_space(file, place, place.below("space")).space
    assert isinstance(space, SpaceWithBaselines)
    return space


def _with_reasons(name: str, model: str) -> str:
    """Lines as they stand in the presets, each parameter where it stands first."""
    kind = "static" if model.startswith(STATIC) else "transformer"
    seen, lines = set[str](), ["parameters:"]
    for part in PRESETS[name]:
        section, held = "", list[str]()
        for line in (FOLDER / f"{part}.yaml").read_text().splitlines():
            if not line.startswith(" "):
                section, held = line.rstrip(":"), []
            elif section in (kind, "both"):
                held.append(line)
                parameter = line.split(":")[0].strip()
                if not parameter.startswith("#"):
                    lines += held if parameter not in seen else []
                    seen.add(parameter)
                    held = []
    return "\n".join(lines)
