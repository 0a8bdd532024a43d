"""`hpo export`: trials as files that say where they came from and train again to the same scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpo.best_file import (
    CLASS_NAMES,
    SCHEMA_VERSION,
    TRAINING_ARGUMENTS,
    BestFile,
    Confirmed,
    EarlyStopping,
    Estimate,
    Loss,
    Metric,
    Provenance,
    SecondLoss,
    TrainingArguments,
    digest,
    job_of,
)
from hpo.config import StudyFile, fingerprint, trial_config
from hpo.confirmed import Confirmation, Interval, confirmation_of
from hpo.errors import InputError
from hpo.feasible import COSTS, best_trials, complete
from hpo.files import write_texts
from hpo.study import BASELINE, VERSIONS, parameters_of
from hpo.yamlfile import write_yaml
from objectives.config import Training, TrialConfig
from objectives.evaluation import METRICS

RECORDED = ("stop_reason", "stop_epoch", "best_epoch", "train_pairs", "device")  # of a trial, in its provenance
INDEX = "What `hpo export` wrote together; metrics are those of each file's own trial, on validation."


def export(study: optuna.Study, file: StudyFile, out: Path, top: int = 1) -> list[Path]:
    """Writes the best trial to `out`, the next ones beside it with their rank in the name, and an index of them.

    One file alone has no index, but one that is there must not be wrong. All are written or, where one cannot be, none.
    Raises InputError.
    """
    trials = _ranked(study, file, top)
    if len(trials) < top:
        print(f"study {file.name} has {len(trials)} trials to export, not {top}")
    paths = [out if rank == 1 else out.with_stem(f"{out.stem}-{rank}") for rank in range(1, len(trials) + 1)]
    best = best_files(study, file, trials)
    texts = {path: _text(one, path.name) for path, one in zip(paths, best, strict=True)}
    index = out.with_stem(f"{out.stem}-index")
    if top > 1 or index.exists():
        texts[index] = write_yaml({"study": file.name, "files": _index(paths, best)}, INDEX)
    write_texts(texts)
    return paths


def best_yaml(study: optuna.Study, file: StudyFile) -> str:
    """The text of the best trial's file. Raises InputError where there is none."""
    [best] = best_files(study, file, _ranked(study, file, 1))
    return _text(best, "best.yaml")


def best_files(study: optuna.Study, file: StudyFile, trials: Sequence[FrozenTrial]) -> list[BestFile]:
    """Of trials that workers have completed. Raises InputError for one that another program told."""
    versions = study._storage.get_study_system_attrs(study._study_id)[VERSIONS]
    confirmation = confirmation_of(study)
    return [_best_file(file, trial, versions, confirmation) for trial in trials]


def _ranked(study: optuna.Study, file: StudyFile, top: int) -> list[FrozenTrial]:
    """What was confirmed comes first, by the scores over seeds; a baseline only if it won. Raises InputError."""
    trials = study.get_trials(deepcopy=False)
    best, confirmation = best_trials(trials, file, len(trials)), confirmation_of(study)
    if not best:
        raise InputError(_why_none(file, complete(trials)))
    runs = [run for run in confirmation.runs if run.baseline is None] if confirmation else []
    first = [confirmation.winner, *(run.trial for run in runs)] if confirmation else []
    by_number = {trial.number: trial for trial in complete(trials)}
    ranked = dict.fromkeys([*(number for number in first if number in by_number), *(trial.number for trial in best)])
    return [by_number[number] for number in ranked][:top]


def _why_none(file: StudyFile, completed: Sequence[FrozenTrial]) -> str:
    if not completed:
        return f"study {file.name!r} has no completed trial yet; nothing to export"
    limits = ", ".join(name for name in COSTS if getattr(file.constraints, name) is not None)
    return f"no trial of study {file.name!r} keeps its constraints ({limits}); see: hpo costs {file.name}"


def _text(best: BestFile, name: str) -> str:
    trial, study = best.provenance.trial, best.provenance.study
    comment = f"Trial {trial} of study {study}. Train it: hpo train {name} -o MODEL_DIR"
    return write_yaml(best.model_dump(mode="json"), comment)


def _index(paths: Sequence[Path], best: Sequence[BestFile]) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "file": path.name,
            "trial": one.provenance.trial,
            "baseline": one.provenance.baseline,
            "confirmed": one.confirmed is not None,
            "metrics": {name: metric.value for name, metric in one.metrics.items()},
        }
        for rank, (path, one) in enumerate(zip(paths, best, strict=True), 1)
    ]


def _best_file(
    file: StudyFile, trial: FrozenTrial, versions: dict[str, str], confirmation: Confirmation | None
) -> BestFile:
    config, found = trial_config(file, parameters_of(trial), trial.number), trial.user_attrs
    if missing := [name for name in (*RECORDED, "threshold", "intervals", "ceilings") if name not in found]:
        what = f"trial {trial.number} of study {file.name!r} has no {', '.join(missing)}"
        raise InputError(f"{what}: no worker recorded it, so nothing says how to train it again")
    best = BestFile(
        schema_version=SCHEMA_VERSION,
        **{key: getattr(config, key) for key in TrialConfig.model_fields if key != "training"},
        loss=_loss(config.training, found.get("micro_batch")),
        training_arguments=_training_arguments(config.training, found),
        early_stopping=_early_stopping(config.training, found),
        metrics={
            name: Metric(value=found[name], interval=found["intervals"][name], ceiling=found["ceilings"][name])
            for name in METRICS
        },
        threshold=found["threshold"],
        head_metrics=found.get("head", {}),
        confirmed=_confirmed(confirmation, trial.number) if confirmation else None,
        provenance=_provenance(file, trial, versions),
    )
    came_from = best.provenance.model_copy(update={"configuration": digest(job_of(best).config)})
    return best.model_copy(update={"provenance": came_from})


def _training_arguments(training: Training, found: dict[str, Any]) -> TrainingArguments:
    return TrainingArguments(
        **{theirs: getattr(training, ours) for ours, theirs in TRAINING_ARGUMENTS.items()},
        bf16=found.get("precision") == "bfloat16",
        gradient_checkpointing=found.get("gradient_checkpointing", False),
    )


def _early_stopping(training: Training, found: dict[str, Any]) -> EarlyStopping:
    return EarlyStopping(
        patience=training.patience,
        min_epochs=training.min_epochs,
        eval_every_examples=training.eval_every_examples,
        stop_epoch=found["stop_epoch"] if found["stop_reason"] == "overtaken" else None,
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


def _confirmed(confirmation: Confirmation, number: int) -> Confirmed | None:
    run = next((run for run in confirmation.runs if run.trial == number), None)
    if run is None:
        return None
    judged = confirmation.winner if confirmation.challenger is None else confirmation.challenger
    return Confirmed(
        study=confirmation.study,
        seeds=run.seeds,
        mean=run.mean,
        spread=run.spread,
        against=confirmation.against,
        gain=_estimate(run.gain) if run.gain else None,
        dropped=run.dropped,
        test=run.test,
        test_seeds=confirmation.judged_seeds if run.test else None,
        test_gain=_estimate(confirmation.gain_on_test) if number == judged else None,
        verdict=confirmation.verdict if number == judged else None,
    )


def _estimate(found: Interval) -> Estimate:
    return Estimate(value=found[0], interval=found[1:])


def _provenance(file: StudyFile, trial: FrozenTrial, versions: dict[str, str]) -> Provenance:
    found = trial.user_attrs
    return Provenance(
        study=file.name,
        study_fingerprint=fingerprint(file),
        trial=trial.number,
        baseline=found.get(BASELINE, "none"),
        **{name: found[name] for name in RECORDED},
        deterministic=found.get("deterministic", found["device"] == "cpu"),
        threads=file.threads,
        versions=versions,
    )
