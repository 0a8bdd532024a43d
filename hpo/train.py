"""What a best.yaml and a study's pairs are for: a trained model, and scores that anybody can check."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np

from hpo.config import StudyFile
from hpo.errors import HpoError
from hpo.errors import InputError
from hpo.export import read_best_file
from hpo.files import write_text
from objectives.data import load_data
from objectives.evaluation import METRICS
from objectives.grades import grade
from objectives.model_files import fetch

OUT_OF_MEMORY = (
    "out of memory. In best.yaml, set loss.name to CachedMultipleNegativesRankingLoss and loss.mini_batch_size to half "
    "of the batch or less, or training_arguments.gradient_checkpointing to true"
)


def train_from_file(path: Path, out: Path) -> None:
    """The same fine-tuning as the trial's, with a report that prints. Raises InputError if `out` exists."""
    best, job = read_best_file(path)
    config = job.config
    if out.exists():
        raise InputError(f"{out} exists; give another folder, or remove it")
    load_data(config.incidents, config.labels, config.splits, config.pairs)  # bad input is found before torch is loaded
    fetch(config.model, config.model_revision)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    from objectives.finetune import finetune
    from objectives.progress import Progress
    from objectives.progress import Verdict
    from objectives.trainer import is_out_of_memory

    def report(progress: Progress) -> Verdict:
        print(f"epoch {progress.epoch:6.2f}  spearman {progress.scores['spearman']:.4f}", flush=True)
        return "go on"

    try:
        trained = finetune(config, report, memory=job.memory)
    except Exception as error:
        if is_out_of_memory(error):
            raise HpoError(OUT_OF_MEMORY) from None
        raise
    partial = out.with_name(f".{out.name}.partial")
    trained.save(partial)
    partial.rename(out)
    for metric in METRICS:
        print(f"{metric:16} {trained.result.scores[metric]:.6f}  (in {path.name}: {best.metrics[metric].value:.6f})")
    print(f"model: {out}")


def write_pairs(file: StudyFile, split: str, out: Path) -> int:
    """CSV with anchor, other, grade and label (1 from the positive grade on); returns the number of pairs."""
    data = load_data(file.incidents, file.labels, file.splits, file.pairs)
    if split == "validation":
        anchors, others, grades = data.validation.anchors, data.validation.others, data.validation.grades
    else:
        anchors, others = data.train.T
        grades = grade(data.table, data.ladder, anchors, others)
    texts = np.array(data.table.texts, dtype=object)
    rows = zip(texts[anchors], texts[others], grades, (grades >= data.ladder.positive).astype(int), strict=True)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["anchor", "other", "grade", "label"])
    writer.writerows(rows)
    write_text(out, buffer.getvalue())
    return len(grades)
