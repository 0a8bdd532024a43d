"""What coordination costs: our storage against Optuna's RDBStorage, on one server, in turn, with the same work.

Run: python -m bench.coordination [--quick] [--json]. A trial has 6 parameters and 10 reports with should_prune, whose
decision is ignored; TPE and the median pruner see 200 finished trials (5,000 for the cold start).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier, Semaphore
from pathlib import Path
from statistics import median

import optuna
from rich.console import Console
from rich.table import Table
from sqlalchemy import URL, make_url

from bench.proxy import FaultProxy
from storage import embedded
from storage.connection import Connection
from storage.native import PostgresStorage

STUDY = "study"
REPORTS = 10
FINISHED, FINISHED_COLD = 200, 5000
VARIANTS = ("ours", "plain")
RUNS = (("ours", 2), ("ours", 8), ("plain", 8), ("ours", 32), ("plain", 32))  # with how many workers
LATENCY_S = 0.02
BLOCK_TRIALS = 10
TIMEOUT_S = 600
FAST = {"options": "-c synchronous_commit=off"}  # for trials that are made again when lost
REMOVE_OURS = "DROP SCHEMA incident_hpo CASCADE; DROP INDEX hpo_trials_number, hpo_trials_unfinished"
AT_MOST = {"round_trips": 14, "cpu_ms": 8, "latency_20ms": 0.08, "cold_start_5000": 0.15}
AT_LEAST = {"throughput_8": 5, "throughput_32": 10, "throughput_32_over_2": 0.6}
NUMBERS = itertools.count()
IMPORTS = ["alembic.command", "optuna.storages._rdb.storage", "scipy.stats", "storage.native"]
CONTEXT = multiprocessing.get_context("forkserver")  # workers begin with their imports done

Figures = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much is measured; the figures mean the same."""

    rounds: int = 5
    trials: int = 300  # of one measurement of throughput
    blocks: int = 10
    slow_trials: int = 5  # behind the latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and trials")
    parser.add_argument("--json", action="store_true", help="no table")
    arguments = parser.parse_args()
    CONTEXT.set_forkserver_preload(IMPORTS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without stopping the server
    with server() as url:
        figures = measure(url, Size(rounds=1, trials=32, blocks=2, slow_trials=1) if arguments.quick else Size())
    if not arguments.json:
        Console().print(table(figures))
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def measure(url: URL, size: Size) -> Figures:
    template, large = fill(url, FINISHED), fill(url, FINISHED_COLD)
    figures = measure_cpu(template, size.blocks) | measure_wire(template, size.slow_trials)
    return figures | measure_throughput(template, size) | measure_cold_start(template, large, size.rounds)


def table(figures: Figures) -> Table:
    rows = Table("figure", "measured", "bar", "met")
    for key, value in figures.items():
        words, bar = ("at least", AT_LEAST[key]) if key in AT_LEAST else ("at most", AT_MOST.get(key, math.inf))
        is_met = value >= bar if key in AT_LEAST else value <= bar
        rows.add_row(key, f"{value:.4g}", *((f"{words} {bar}", "yes" if is_met else "NO") if bar < math.inf else ()))
    return rows


def measure_cpu(template: URL, blocks: int) -> Figures:
    """Of a worker's process, for one trial; without what the same takes in memory, where there is no storage."""
    with copies(template) as urls:
        studies = {name: open_study(name, urls.get(name, urls["ours"])) for name in (*VARIANTS, "memory")}
        for study in studies.values():
            run_trial(study)  # loads the finished trials
        rounds = [{name: per_trial(study, time.process_time) for name, study in studies.items()} for _ in range(blocks)]
        params = [[trial.params for trial in study.get_trials()] for study in studies.values()]
    assert params[0] == params[1] == params[2], "they did not do the same work"
    return {
        "cpu_ms": median(cpu_s["ours"] - cpu_s["memory"] for cpu_s in rounds) * 1000,
        "cpu_ms_plain": median(cpu_s["plain"] - cpu_s["memory"] for cpu_s in rounds) * 1000,
        "cpu_ms_in_memory": median(cpu_s["memory"] for cpu_s in rounds) * 1000,
    }


def measure_wire(template: URL, slow_trials: int) -> Figures:
    """Round trips as the proxy counts them, and how long a trial takes when each is of 20 ms."""
    with FaultProxy(template) as proxy, copies(template) as urls:
        studies = {name: open_study(name, proxy.url.set(database=url.database)) for name, url in urls.items()}
        for study in studies.values():
            run_trial(study)
        trips = {name: per_trial(study, proxy.round_trips) for name, study in studies.items()}
        proxy.set_latency(LATENCY_S)
        rounds = [
            {name: per_trial(study, time.perf_counter, trials=1) for name, study in studies.items()}
            for _ in range(slow_trials)
        ]
    return {
        "round_trips": trips["ours"],
        "round_trips_plain": trips["plain"],
        "latency_20ms": median(trial_s["ours"] / trial_s["plain"] for trial_s in rounds),
        "latency_20ms_trial_ms": median(trial_s["ours"] for trial_s in rounds) * 1000,
        "latency_20ms_trial_ms_plain": median(trial_s["plain"] for trial_s in rounds) * 1000,
    }


def measure_throughput(template: URL, size: Size) -> Figures:
    rounds = []
    for _ in range(size.rounds):
        per_s = {}
        for name, workers in RUNS:
            with copies(template) as urls:
                per_s[name, workers] = trials_per_s(name, urls[name], workers, size.trials)
        rounds.append(per_s)
    figures = {
        "throughput_8": median(per_s["ours", 8] / per_s["plain", 8] for per_s in rounds),
        "throughput_32": median(per_s["ours", 32] / per_s["plain", 32] for per_s in rounds),
        "throughput_32_over_2": median(per_s["ours", 32] / per_s["ours", 2] for per_s in rounds),
    }
    raw = {f"trials_per_s_{name}_{workers}": median(per_s[name, workers] for per_s in rounds) for name, workers in RUNS}
    return figures | raw


def trials_per_s(name: str, url: URL, workers: int, trials: int) -> float:
    barrier, left = CONTEXT.Barrier(workers + 1, timeout=TIMEOUT_S), CONTEXT.Semaphore(trials)
    for seed in range(workers):
        CONTEXT.Process(target=work, args=(name, url, seed, barrier, left), daemon=True).start()
    barrier.wait()
    started = time.perf_counter()
    barrier.wait()
    return trials / (time.perf_counter() - started)


def work(name: str, url: URL, seed: int, barrier: Barrier, left: Semaphore) -> None:
    try:
        study = open_study(name, url, seed)
        run_trial(study)
        barrier.wait()
        while left.acquire(block=False):
            run_trial(study)
        barrier.wait()
    except BaseException:
        barrier.abort()
        raise


def measure_cold_start(small: URL, large: URL, rounds: int) -> Figures:
    seconds = []
    with copies(small) as warm, copies(large) as urls:
        for _ in range(rounds):
            with CONTEXT.Pool(1, maxtasksperchild=1) as pool:
                jobs = [(name, warm[name], urls[name]) for name in VARIANTS]
                seconds.append(dict(zip(VARIANTS, pool.starmap(cold_start_s, jobs, chunksize=1), strict=True)))
    return {
        "cold_start_5000": median(each["ours"] / each["plain"] for each in seconds),
        "cold_start_5000_ms": median(each["ours"] for each in seconds) * 1000,
        "cold_start_5000_ms_plain": median(each["plain"] for each in seconds) * 1000,
    }


def cold_start_s(name: str, warm: URL, url: URL) -> float:
    """To the first trial of a new worker."""
    run_trial(open_study(name, warm))  # of another study, so that every import is done
    started = time.perf_counter()
    begin(open_study(name, url))
    return time.perf_counter() - started


def per_trial(study: optuna.Study, meter: Callable[[], float], trials: int = BLOCK_TRIALS) -> float:
    before = meter()
    for _ in range(trials):
        run_trial(study)
    return (meter() - before) / trials


def open_study(name: str, url: URL, seed: int = 0) -> optuna.Study:
    sampler, pruner = optuna.samplers.TPESampler(seed=seed), optuna.pruners.MedianPruner()
    if name == "memory":
        study = optuna.create_study(sampler=sampler, pruner=pruner)
        study.add_trials(open_study("ours", url).get_trials())
        return study
    text = url.render_as_string(hide_password=False)
    storage = PostgresStorage(url) if name == "ours" else optuna.storages.get_storage(text)
    return optuna.load_study(study_name=STUDY, storage=storage, sampler=sampler, pruner=pruner)


def run_trial(study: optuna.Study) -> None:
    trial = begin(study)
    loss = suggest(trial)
    if isinstance(study._storage, PostgresStorage):
        study._storage.flush(trial._trial_id)
    for step in range(REPORTS):
        trial.report(loss + 1 / (step + 1), step)
        trial.should_prune()
    study.tell(trial, loss)


def begin(study: optuna.Study) -> optuna.Trial:
    if not isinstance(study._storage, PostgresStorage):
        return study.ask()
    claim = study._storage.claim(study._study_id, "bench")
    assert claim.trial_id is not None
    return optuna.Trial(study, claim.trial_id)


def suggest(trial: optuna.Trial) -> float:
    warmup, decay = trial.suggest_float("warmup", 0, 1), trial.suggest_float("decay", 0, 0.1)
    learning_rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    epochs, batch_size = trial.suggest_int("epochs", 1, 20), trial.suggest_int("batch_size", 8, 256, log=True)
    kind = trial.suggest_categorical("kind", ["mnrl", "triplet", "contrastive"])
    distance = (warmup - 0.3) ** 2 + (decay - 0.05) ** 2 + (math.log10(learning_rate) + 3) ** 2
    return distance + epochs / 20 + math.log2(batch_size) / 8 + len(kind) / 10


@contextmanager
def server() -> Iterator[URL]:
    home = Path(tempfile.mkdtemp(prefix="hpo-bench-"))
    home.chmod(0o755)  # the server runs as another user when we are root
    try:
        yield make_url(embedded.start(home))
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


def fill(url: URL, finished: int) -> URL:
    """A database to be copied, with a study of so many trials."""
    history = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=optuna.pruners.NopPruner())
    for _ in range(finished):
        run_trial(history)
    template = url.set(database=f"template_{finished}")
    execute(url, f"CREATE DATABASE {template.database}")
    storage = PostgresStorage(template.update_query_dict(FAST))
    study = optuna.create_study(study_name=STUDY, storage=storage)
    storage.manage(study._study_id, budget=10**6, lease_s=60)
    study.add_trials(history.get_trials(deepcopy=False))
    storage.remove_session()
    execute(template, "VACUUM ANALYZE")
    return template


@contextmanager
def copies(template: URL) -> Iterator[dict[str, URL]]:
    """One for each variant; the plain one as Optuna alone makes it."""
    urls = {name: template.set(database=f"{name}_{next(NUMBERS)}") for name in VARIANTS}
    anywhere = template.set(database="postgres")
    for url in urls.values():
        execute(anywhere, f"CREATE DATABASE {url.database} TEMPLATE {template.database}")
    execute(urls["plain"], REMOVE_OURS)
    yield urls
    for url in urls.values():
        execute(anywhere, f"DROP DATABASE {url.database} WITH (FORCE)")


def execute(url: URL, statement: str) -> None:
    connection = Connection(url)
    connection.run(statement, timeout_s=TIMEOUT_S)
    connection.close()


if __name__ == "__main__":
    main()
