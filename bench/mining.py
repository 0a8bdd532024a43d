"""What each way of mining training pairs gains over plain ones, on your own incidents; docs/pairs.md holds such tables.

The same validation pairs, static model, learning rate, batches and number of steps for all; five seeds for the pairs
and their order. A gain is the mean of the differences to plain pairs seed by seed, with its 95 % t interval.
Run: python -m bench.mining STUDY.yaml [CHOICE ...]   (incidents, labels, splits, pairs and model are the study's)
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from hpo.config import trial_config
from hpo.study_file import read_study_file
from objectives.config import Mining, Training
from objectives.data import load_data
from objectives.evaluation import score
from objectives.finetune import rank_validation
from objectives.grades import may_be_alike
from objectives.incidents import IntArray
from objectives.mining import TrainPairs, mine
from objectives.models import encode, load_encoder
from objectives.nearness import BoolArray
from objectives.training import fit

EXAMPLES = 60_000  # seen by each: fewer pairs are seen more often
TRAINING = Training(learning_rate=5e-3, batch_size=128, epochs=1, scale=10.0, eval_every_examples=EXAMPLES)
SEEDS = range(5)
METRICS = ("spearman", "roc_auc", "pr_auc", "f1")
PLAIN = "plain: equal subcategory, 20,000 pairs"
CHOICES: dict[str, dict[str, object]] = {
    PLAIN: {},
    "60,000 pairs": {"train_pairs": 60_000},
    "graded positives": {"positives": "graded"},
    "graded, false negatives masked": {"positives": "graded", "false_negatives": "mask"},
    "false negatives masked": {"false_negatives": "mask"},
    "square-root balance": {"class_balance": "sqrt"},
    "oversampled to balance": {"class_balance": "oversample"},
    "positives TF-IDF above 0.05": {"min_similarity": 0.05},
    "positives TF-IDF below 0.5": {"max_similarity": 0.5},
    "positives model above 0.3": {"similarity": "model", "min_similarity": 0.3},
    "positives model below 0.8": {"similarity": "model", "max_similarity": 0.8},
    "hard negatives TF-IDF": {"hard_negatives": "tfidf"},
    "hard negatives TF-IDF, 50 skipped": {"hard_negatives": "tfidf", "hard_negative_skip": 50},
    "hard negatives TF-IDF, 3 per pair": {"hard_negatives": "tfidf", "hard_negatives_per_pair": 3},
    "hard negatives Jaccard": {"hard_negatives": "jaccard"},
    "hard negatives model": {"hard_negatives": "model"},
    "hard negatives model, 50 skipped": {"hard_negatives": "model", "hard_negative_skip": 50},
    "synonyms in 30 %": {"augmentation": "synonyms"},
    "typos in 30 %": {"augmentation": "typos"},
    "words dropped in 30 %": {"augmentation": "word_dropout"},
}


def main(study: str, names: Iterable[str]) -> None:
    chosen = [PLAIN, *(name for name in CHOICES if name != PLAIN and (not names or name in names))]
    jobs = [(study, name, seed) for seed in SEEDS for name in chosen]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(_scores, *zip(*jobs, strict=True)), strict=True))
    by_choice = {name: np.array([found[study, name, seed] for seed in SEEDS]) for name in chosen}
    plain = by_choice.pop(PLAIN)
    print(f"{PLAIN}: " + ", ".join(f"{m} {v:.3f}" for m, v in zip(METRICS, plain.mean(0), strict=True)) + "\n")
    print("| choice | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    gains = {name: [gain(column) for column in (scores - plain).T] for name, scores in by_choice.items()}
    for name, row in gains.items():
        print(f"| {name} | " + " | ".join(in_words(*gain) for gain in row) + " |")
    print(json.dumps({name: dict(zip(METRICS, row, strict=True)) for name, row in gains.items()}))


def _scores(study: str, choice: str, seed: int) -> list[float]:
    torch.set_num_threads(1)
    config = trial_config(read_study_file(Path(study)))
    data, mining = load_data(config), Mining.model_validate(CHOICES[choice])
    base = load_encoder(config.model, config.max_seq_tokens, data.table.texts)
    mined = mine(data.table, data.ladder, data.splits["train"], mining, seed, lambda numbers: encode(base, numbers))
    encoder = load_encoder(config.model, config.max_seq_tokens, [*data.table.texts, *mined.altered])
    incident_of = np.concatenate([np.arange(len(data.table)), mined.sources])

    def is_alike(left: IntArray, right: IntArray) -> BoolArray:
        return may_be_alike(data.table, incident_of[left], incident_of[right])

    ends = np.resize(mined.ends, (EXAMPLES, mined.ends.shape[1]))
    masked = is_alike if mining.false_negatives == "mask" else None
    run = fit(
        encoder,
        TrainPairs(ends),
        TRAINING,
        seed,
        lambda: score(rank_validation(encoder, data)),
        lambda _: "go on",
        is_alike=masked,
    )
    return [run.curve[-1].scores[metric] for metric in METRICS]


def gain(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval."""
    spread = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(spread * t.ppf(0.975, len(differences) - 1))


def in_words(mean: float, half: float) -> str:
    text = f"{mean:+.3f} ± {half:.3f}"
    return f"**{text}**" if abs(mean) > half else text


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
