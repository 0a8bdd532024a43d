"""The format of best.yaml. Its JSON Schema is docs/best.schema.json, which `python -m hpo.best_file` prints.

What is added to it has a default, so that files of the same version stay readable; any other change raises the version.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hpo.confirmed import Scores
from hpo.errors import InputError
from hpo.yamlfile import read_yaml
from objectives.config import (
    COLUMNS,
    STRICT,
    Head,
    Incidents,
    Job,
    Labels,
    LossName,
    Memory,
    Mining,
    Pairs,
    Positive,
    Pretraining,
    Share,
    Splits,
    Training,
    TrialConfig,
)
from objectives.evaluation import METRICS, MetricName

SCHEMA_VERSION: Literal[1] = 1

# Ours on the left; on the right the names of sentence-transformers' SentenceTransformerTrainingArguments.
TRAINING_ARGUMENTS = {
    "learning_rate": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "warmup_ratio": "warmup_steps",  # a float below 1 is a share of all steps there
    "schedule": "lr_scheduler_type",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
}
ClassName = Literal[
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "CachedMultipleNegativesRankingLoss",
    "TripletLoss",
    "ContrastiveLoss",
    "OnlineContrastiveLoss",
    "CoSENTLoss",
    "AnglELoss",
]
CLASS_NAMES: dict[LossName, ClassName] = dict(zip(COLUMNS, get_args(ClassName), strict=True))
NOT_OF_A_TRIAL = {"incidents": {"path", "dataset"}}  # where the data lie is no part of what was trained


class SecondLoss(BaseModel):
    model_config = STRICT
    name: ClassName
    weight: float


class Loss(BaseModel):
    """Under the names that sentence-transformers has for them."""

    model_config = STRICT
    name: ClassName
    scale: float
    margin: float = Training.model_fields["margin"].default
    second: SecondLoss | None = None
    mini_batch_size: int | None = None  # texts that were computed at once; None: all of a batch, or as that class does

    @model_validator(mode="after")
    def _is_cached_in_parts(self) -> Loss:
        if self.mini_batch_size is not None and self.name == CLASS_NAMES["mnrl"]:
            raise ValueError(f"mini_batch_size {self.mini_batch_size} does not go with {self.name}")
        return self

    def settings(self) -> dict[str, Any]:
        """As ours; computed in parts, the one is the other."""
        ours = {name: loss for loss, name in CLASS_NAMES.items()}
        in_parts = self.mini_batch_size is not None and self.name == CLASS_NAMES["cached_mnrl"]
        found = {"loss": "mnrl" if in_parts else ours[self.name], "scale": self.scale, "margin": self.margin}
        if self.second is not None:
            found |= {"second_loss": ours[self.second.name], "second_loss_weight": self.second.weight}
        return found


class TrainingArguments(BaseModel):
    """Under the names that sentence-transformers' SentenceTransformerTrainingArguments has for them."""

    model_config = STRICT
    learning_rate: float
    per_device_train_batch_size: Positive
    num_train_epochs: Positive
    warmup_steps: Share
    lr_scheduler_type: str
    weight_decay: float
    max_grad_norm: float
    bf16: bool = False
    gradient_checkpointing: bool = False


class EarlyStopping(BaseModel):
    model_config = STRICT
    patience: Positive | Literal["off"]
    min_epochs: float
    eval_every_examples: Positive
    stop_epoch: float | None = None  # at which its pruner ended the trial, which kept its best; None: nowhere


class Estimate(BaseModel):
    model_config = STRICT
    value: float
    interval: Annotated[tuple[float, float], Field(strict=False)]  # 95 %


class Metric(BaseModel):
    """On validation."""

    model_config = STRICT
    value: float
    interval: Annotated[tuple[float, float], Field(strict=False)]  # 95 %
    ceiling: float


class Confirmed(BaseModel):
    """What `hpo confirm` found of the configuration on seeds that the search had not seen."""

    model_config = STRICT
    study: str  # of its runs
    seeds: int
    mean: Scores  # on validation
    spread: Scores  # standard deviation between seeds
    against: str  # the best baseline
    gain: Estimate | None = None  # of Spearman over that, on validation; None: it is that baseline
    dropped: str | None = None  # why it was given up
    test: Scores | None = None  # mean on test; None: it was not judged
    test_seeds: int | None = None
    test_gain: Estimate | None = None
    verdict: Literal["better", "indistinguishable", "worse"] | None = None  # than the baseline, on test


class Provenance(BaseModel):
    model_config = STRICT
    study: str
    study_fingerprint: str
    trial: int
    baseline: str  # or none
    stop_reason: Literal["completed", "early_stopping", "overtaken"]
    stop_epoch: float
    best_epoch: float
    train_pairs: int
    device: str
    deterministic: bool
    threads: int | None = None  # None: an earlier release wrote it
    configuration: str | None = None  # SHA-256 of what it trained with
    versions: dict[str, str]


class BestFile(BaseModel):
    """What `hpo export` writes and `hpo train` reads."""

    model_config = STRICT | ConfigDict(
        title=f"best.yaml of incident-hpo, version {SCHEMA_VERSION}",
        json_schema_extra={
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"urn:incident-hpo:best.yaml:{SCHEMA_VERSION}",
        },
    )
    schema_version: Literal[1]
    model: str
    model_revision: str | None = None
    max_seq_tokens: int
    incidents: Incidents
    labels: Labels = Labels()
    splits: Splits
    pairs: Pairs
    mining: Mining = Mining()
    pretraining: Pretraining = Pretraining()
    loss: Loss
    training_arguments: TrainingArguments
    early_stopping: EarlyStopping
    seed: int
    threads: int
    head: Head = Head()
    metrics: Annotated[dict[MetricName, Metric], Field(min_length=len(METRICS))]
    threshold: float
    head_metrics: dict[str, float] = {}  # of the match head, where there is one
    confirmed: Confirmed | None = None
    provenance: Provenance


def read_best_file(path: Path) -> tuple[BestFile, Job]:
    """What is to be trained, and how it was computed. A relative path is one from the file's folder. InputError."""
    best = read_yaml(path, BestFile)
    incidents = best.incidents
    if "://" not in incidents.path and not os.path.isabs(incidents.path):
        incidents = incidents.model_copy(update={"path": str(path.parent.absolute() / incidents.path)})
    try:
        return best, job_of(best.model_copy(update={"incidents": incidents}))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {': '.join([*map(str, first['loc']), first['msg']])}") from None


def job_of(best: BestFile) -> Job:
    """Raises ValidationError for what no trial can train with."""
    arguments = best.training_arguments
    training = {ours: getattr(arguments, theirs) for ours, theirs in TRAINING_ARGUMENTS.items()}
    training |= best.early_stopping.model_dump(exclude={"stop_epoch"}) | best.loss.settings()
    training["precision"] = "bfloat16" if arguments.bf16 else "float32"
    shared = {key: getattr(best, key) for key in TrialConfig.model_fields if key != "training"}
    memory = Memory(micro_batch=best.loss.mini_batch_size, gradient_checkpointing=arguments.gradient_checkpointing)
    return Job(config=TrialConfig(**shared, training=Training.model_validate(training)), memory=memory)


def digest(config: TrialConfig) -> str:
    """Equal for what trains alike; what a later release adds to a configuration changes none."""
    content = config.model_dump(mode="json", exclude=NOT_OF_A_TRIAL, exclude_defaults=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def schema() -> str:
    return json.dumps(BestFile.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
