"""What each loss and stage brings over plain fine-tuning, on your own incidents; docs/methods.md holds such tables.

Static models: 20,000 pairs, three epochs, five seeds, each method at the learning rate that is best for the first seed.
Transformers: 512 pairs, one epoch, two seeds (of the order alone: a stage is made once), one learning rate. A gain is
the mean of the differences to plain fine-tuning on the same pairs, seed by seed, with its 95 % t interval.
Run: python -m bench.methods STUDY.yaml   (incidents, labels, splits, pairs and model are the study's)
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from bench.mining import gain, in_words
from hpo.config import trial_config
from hpo.datasets import cache_folder
from hpo.study_file import read_study_file
from objectives.config import STATIC
from objectives.finetune import finetune
from search_spaces.space import Values

METRICS = ("spearman", "roc_auc", "pr_auc", "f1")
PLAIN = "plain: mnrl"
LOSSES: dict[str, Values] = {
    PLAIN: {"loss": "mnrl"},
    "symmetric_mnrl": {"loss": "symmetric_mnrl"},
    "triplet": {"loss": "triplet", "margin": 0.3},
    "triplet, hard negatives": {"loss": "triplet", "margin": 0.3, "hard_negatives": "tfidf", "hard_negative_skip": 50},
    "contrastive": {"loss": "contrastive"},
    "online_contrastive": {"loss": "online_contrastive"},
    "cosent": {"loss": "cosent"},
    "angle": {"loss": "angle", "scale": 3.0},
    "mnrl + 0.1 cosent": {"loss": "mnrl", "second_loss": "cosent", "second_loss_weight": 0.1},
    "mnrl + 0.1 angle": {"loss": "mnrl", "second_loss": "angle", "second_loss_weight": 0.1},
    "mnrl + 1 online_contrastive": {"second_loss": "online_contrastive", "second_loss_weight": 1.0},
}
# With transformers, whose runs take minutes.
UNTRIED = (
    "symmetric_mnrl",
    "triplet, hard negatives",
    "mnrl + 0.1 cosent",
    "mnrl + 1 online_contrastive",
)
STAGES: dict[str, Values] = {
    "mlm, then mnrl": {"stage": "mlm"},
    "tsdae, then mnrl": {"stage": "tsdae"},
    "texts cut at 32 tokens": {"max_seq_tokens": 32},
}
OF_STATIC: Values = {"batch_size": 128, "epochs": 3, "scale": 5.0, "train_pairs": 20_000, "eval_every_examples": 10_000}
OF_TRANSFORMER: Values = {"batch_size": 16, "epochs": 1, "scale": 10.0, "train_pairs": 512, "learning_rate": 5e-5}
RATES = (1e-3, 5e-3, 2e-2)


def main(study: str) -> None:
    is_static = read_study_file(Path(study)).model.startswith(STATIC)
    methods = {name: (OF_STATIC if is_static else OF_TRANSFORMER) | values for name, values in LOSSES.items()}
    seeds = range(5) if is_static else range(2)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:

        def scores_of(several: Sequence[Values], of_seeds: Sequence[int]) -> np.ndarray:
            """(configurations, seeds, metrics)."""
            jobs = [(study, values, seed) for seed in of_seeds for values in several]  # nobody waits for a stage
            found = list(pool.map(_scores, *zip(*jobs, strict=True)))
            return np.array(found).reshape(len(of_seeds), len(several), len(METRICS)).swapaxes(0, 1)

        if is_static:
            rates = [values | {"learning_rate": rate} for values in methods.values() for rate in RATES]
            first = scores_of(rates, [0])[:, 0, 0].reshape(len(methods), len(RATES))
            best = {name: RATES[row.argmax()] for name, row in zip(methods, first, strict=True)}
            methods = {name: values | {"learning_rate": best[name]} for name, values in methods.items()}
        else:
            methods = {name: methods[name] for name in methods if name not in UNTRIED}
            methods |= {name: OF_TRANSFORMER | values for name, values in STAGES.items()}
        found = dict(zip(methods, scores_of(list(methods.values()), list(seeds)), strict=True))
    _print(found, methods)


def _scores(study: str, values: Values, seed: int) -> list[float]:
    config = trial_config(read_study_file(Path(study)), values, seed)
    if config.model.startswith(STATIC):
        config = config.model_copy(update={"pairs": config.pairs.model_copy(update={"seed": seed})})
    scores = finetune(config, lambda _: "go on", cache=cache_folder()).result.scores
    print(f"{seed} {values} {scores['spearman']:.4f}", file=sys.stderr, flush=True)
    return [scores[metric] for metric in METRICS]


def _print(found: dict[str, np.ndarray], methods: dict[str, Values]) -> None:
    plain, rate = found.pop(PLAIN), methods[PLAIN]["learning_rate"]
    means = ", ".join(f"{metric} {value:.3f}" for metric, value in zip(METRICS, plain.mean(0), strict=True))
    print(f"{PLAIN}, learning rate {rate:g}: {means}\n")
    print("| method | learning rate | " + " | ".join(METRICS) + " |\n|---|---|" + "---|" * len(METRICS))
    gains = {name: [gain(column) for column in (scores - plain).T] for name, scores in found.items()}
    for name, row in gains.items():
        rate = methods[name]["learning_rate"]
        print(f"| {name} | {rate:g} | " + " | ".join(in_words(*one) for one in row) + " |")
    print(json.dumps({name: dict(zip(METRICS, row, strict=True)) for name, row in gains.items()}))


if __name__ == "__main__":
    main(sys.argv[1])
