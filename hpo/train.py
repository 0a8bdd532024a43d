"""What a best.yaml and a study's pairs are for: a trained model, and scores that anybody can check."""

from __future__ import annotations

import csv
import io
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna

from hpo.config import StudyFile, trial_config
from hpo.datasets import cache_folder, for_training
from hpo.datasets import fetch as fetch_incidents
from hpo.errors import HpoError, InputError
from hpo.export import BestFile, read_best_file
from hpo.files import make_folder, write_text
from hpo.model_folder import ModelFacts, write_facts
from hpo.study import ours
from objectives.data import load_data, needs_model, train_pairs
from objectives.evaluation import METRICS
from objectives.grades import grade
from objectives.model_files import fetch

if TYPE_CHECKING:
    from objectives.finetune import Result

OUT_OF_MEMORY = (
    "out of memory. In best.yaml, set loss.mini_batch_size to half of the batch or less (MultipleNegativesRankingLoss "
    "is then the Cached one, by name), or training_arguments.gradient_checkpointing to true"
)


def train_from_file(path: Path, out: Path) -> None:
    """The same fine-tuning as the trial's, with a report that prints. Raises InputError if `out` exists."""
    best, job = read_best_file(path)
    config = job.config
    if out.exists():
        raise InputError(f"{out} exists; give another folder, or remove it")
    make_folder(out.absolute().parent)
    for_training(config.incidents)
    load_data(config, cache_folder())  # bad input is found before torch is loaded
    fetch(config.model, config.model_revision)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    from objectives.finetune import finetune
    from objectives.progress import Progress, Verdict
    from objectives.trainer import is_out_of_memory

    def report(progress: Progress) -> Verdict:
        print(f"epoch {progress.epoch:6.2f}  spearman {progress.scores['spearman']:.4f}", flush=True)
        return "go on"

    try:
        trained = finetune(config, report, memory=job.memory, cache=cache_folder())
    except Exception as error:
        if is_out_of_memory(error):
            raise HpoError(OUT_OF_MEMORY) from None
        raise
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    trained.save(partial)
    threshold, has_head = trained.result.scores["threshold"], trained.head is not None
    write_facts(partial, ModelFacts(incidents=config.incidents, threshold=threshold, head=has_head))
    partial.rename(out)
    _print_scores(trained.result, best, path.name)
    print(f"model: {out}")


def _print_scores(result: Result, best: BestFile, name: str) -> None:
    for metric in METRICS:
        print(f"{metric:16} {result.scores[metric]:.6f}  (in {name}: {best.metrics[metric].value:.6f})")
    if result.no_head:
        print(f"without a match head: {result.no_head}")
    if result.head:
        print("with its match head:")
    for metric_of_head, value in result.head.items():
        recorded = best.head_metrics.get(metric_of_head)
        before = f"  (in {name}: {recorded:.6f})" if recorded is not None else ""
        print(f"{metric_of_head:16} {value:.6f}{before}")


def write_pairs(study: optuna.Study, file: StudyFile, split: str, out: Path) -> int:
    """CSV with anchor, other, grade and label (1 from the positive grade on); returns the number of pairs.

    Training pairs are those of the study file, whatever a search varies of them. Raises InputError, DataError.
    """
    config = trial_config(file)
    fetch_incidents(ours(study), config.incidents)
    data, altered = load_data(config, cache_folder()), list[str]()
    if split == "validation":
        anchors, others, grades = data.validation.anchors, data.validation.others, data.validation.grades
    else:
        if needs_model(config.mining):
            raise InputError("these training pairs are mined by a model; only a trial can tell them")
        mined = train_pairs(data, config, cache_folder())
        (anchors, others), altered = mined.ends[:, :2].T, mined.altered
        incident_of = np.concatenate([np.arange(len(data.table)), mined.sources])
        grades = grade(data.table, data.ladder, incident_of[anchors], others)
    texts = np.array([*data.table.texts, *altered], dtype=object)
    rows = zip(texts[anchors], texts[others], grades, (grades >= data.ladder.positive).astype(int), strict=True)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["anchor", "other", "grade", "label"])
    writer.writerows(rows)
    write_text(out, buffer.getvalue())
    return len(grades)
