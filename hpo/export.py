"""best.yaml: one trial as a file that says where it came from and trains again to the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import optuna
from optuna.trial import FrozenTrial
from pydantic import BaseModel, Field, ValidationError, model_validator

from hpo.config import StudyFile, fingerprint, trial_config
from hpo.errors import InputError
from hpo.feasible import COSTS, best_trials, complete
from hpo.files import write_text
from hpo.study import BASELINE, VERSIONS, parameters_of
from hpo.yamlfile import read_yaml, write_yaml
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
    Pretraining,
    Splits,
    Training,
    TrialConfig,
)
from objectives.evaluation import METRICS

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
HOW_COMPUTED: dict[str, str | int | float | bool] = {"bf16": False, "gradient_checkpointing": False}  # may be left out
EARLY_STOPPING = ("patience", "min_epochs", "eval_every_examples")


class Metric(BaseModel):
    model_config = STRICT
    value: float
    interval: tuple[float, float] = Field(strict=False)
    ceiling: float


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


class BestFile(BaseModel):
    """What `hpo export` writes and `hpo train` reads."""

    model_config = STRICT
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
    training_arguments: dict[str, str | int | float | bool]
    early_stopping: dict[str, str | int | float]
    seed: int
    threads: int
    head: Head = Head()
    metrics: dict[str, Metric]
    threshold: float
    head_metrics: dict[str, float] = {}  # of the match head, where there is one
    provenance: dict[str, Any]


def export(study: optuna.Study, file: StudyFile, out: Path, top: int = 1) -> list[Path]:
    """Writes the best trial to `out`, the next ones beside it with their rank in the name. Raises InputError."""
    trials = best_trials(study.get_trials(deepcopy=False), file, top)
    if not trials:
        if complete(study.get_trials(deepcopy=False)):
            limits = ", ".join(name for name in COSTS if getattr(file.constraints, name) is not None)
            raise InputError(
                f"no trial of study {file.name!r} keeps its constraints ({limits}); see: hpo costs {file.name}"
            )
        raise InputError(f"study {file.name!r} has no completed trial yet; nothing to export")
    paths = [out if rank == 1 else out.with_stem(f"{out.stem}-{rank}") for rank in range(1, len(trials) + 1)]
    for path, trial in zip(paths, trials, strict=True):
        comment = f"Trial {trial.number} of study {file.name}. Train it: hpo train {path.name} -o MODEL_DIR"
        write_text(path, write_yaml(_best_file(study, file, trial).model_dump(mode="json"), comment))
    return paths


def read_best_file(path: Path) -> tuple[BestFile, Job]:
    """What is to be trained, and how it was computed. Raises InputError that names the file."""
    best = read_yaml(path, BestFile)
    arguments = HOW_COMPUTED | best.training_arguments
    unknown = sorted(arguments.keys() ^ {*TRAINING_ARGUMENTS.values(), *HOW_COMPUTED})
    if unknown:
        raise InputError(f"{path}: training_arguments: missing or unknown: {', '.join(unknown)}")
    for name in HOW_COMPUTED:
        if not isinstance(arguments[name], bool):
            raise InputError(f"{path}: training_arguments.{name}: expected true or false, found {arguments[name]!r}")
    training = {ours: arguments[theirs] for ours, theirs in TRAINING_ARGUMENTS.items()}
    training |= best.early_stopping | best.loss.settings()
    training["precision"] = "bfloat16" if arguments["bf16"] else "float32"
    memory = {"micro_batch": best.loss.mini_batch_size, "gradient_checkpointing": arguments["gradient_checkpointing"]}
    shared = {key: getattr(best, key) for key in TrialConfig.model_fields if key != "training"}
    try:
        config = TrialConfig(**shared, training=Training.model_validate(training))
        return best, Job(config=config, memory=Memory.model_validate(memory))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {': '.join([*map(str, first['loc']), first['msg']])}") from None


def _best_file(study: optuna.Study, file: StudyFile, trial: FrozenTrial) -> BestFile:
    config = trial_config(file, parameters_of(trial), trial.number)
    training, found = config.training.model_dump(), trial.user_attrs
    return BestFile(
        schema_version=SCHEMA_VERSION,
        **{key: getattr(config, key) for key in TrialConfig.model_fields if key != "training"},
        loss=_loss(config.training, found.get("micro_batch")),
        training_arguments={
            **{theirs: training[ours] for ours, theirs in TRAINING_ARGUMENTS.items()},
            "bf16": found.get("precision") == "bfloat16",
            "gradient_checkpointing": found.get("gradient_checkpointing", False),
        },
        early_stopping={key: training[key] for key in EARLY_STOPPING},
        metrics={
            name: Metric(value=found[name], interval=found["intervals"][name], ceiling=found["ceilings"][name])
            for name in METRICS
        },
        threshold=found["threshold"],
        head_metrics=found.get("head", {}),
        provenance={
            "study": file.name,
            "study_fingerprint": fingerprint(file),
            "trial": trial.number,
            "baseline": found.get(BASELINE, "none"),
            "stop_reason": found["stop_reason"],
            "stop_epoch": found["stop_epoch"],
            "best_epoch": found["best_epoch"],
            "train_pairs": found["train_pairs"],
            "device": found["device"],
            "deterministic": found.get("deterministic", found["device"] == "cpu"),
            "versions": study._storage.get_study_system_attrs(study._study_id)[VERSIONS],
        },
    )


def _loss(training: Training, micro_batch: int | None) -> Loss:
    in_parts = training.loss == "mnrl" and micro_batch is not None
    second = None
    if training.second_loss != "off":
        second = SecondLoss(name=CLASS_NAMES[training.second_loss], weight=training.second_loss_weight)
    return Loss(
        name=CLASS_NAMES["cached_mnrl" if in_parts else training.loss],
        scale=training.scale,
        margin=training.margin,
        second=second,
        mini_batch_size=micro_batch,
    )
