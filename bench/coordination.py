"""What coordination costs: our storage against Optuna's RDBStorage, on one server, interleaved, with the same work.

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
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from pathlib import Path

import optuna
import psycopg2
from rich.console import Console
from rich.table import Table
from sqlalchemy import URL
from sqlalchemy import make_url

from bench.proxy import FaultProxy
from storage import embedded
from storage.native import PostgresStorage

STUDY = "study"
REPORTS = 10
FINISHED, FINISHED_COLD = 200, 5000
VARIANTS = ("ours", "plain")
RUNS = (("ours", 2), ("ours", 8), ("plain", 8), ("ours", 32), ("plain", 32))  # who, with how many workers
LATENCY_S = 0.02
BLOCK_TRIALS = 10  # in turn: one variant, then the other
TIMEOUT_S = 600
NOT_SAFE = {"options": "-c synchronous_commit=off"}  # to fill a study that can be filled again
OURS_ALONE = "DROP SCHEMA hpo CASCADE", "DROP INDEX hpo_trials_number, hpo_trials_unfinished"
AT_MOST, AT_LEAST = "at most", "at least"
BARS = {
    "round_trips": (AT_MOST, 14.0),
    "cpu_ms": (AT_MOST, 8.0),
    "throughput_8": (AT_LEAST, 5.0),
    "throughput_32": (AT_LEAST, 10.0),
    "throughput_32_over_2": (AT_LEAST, 0.6),
    "latency_20ms": (AT_MOST, 0.08),
    "cold_start_5000": (AT_MOST, 0.15),
}
NUMBERS = itertools.count()
CONTEXT = multiprocessing.get_context("forkserver")  # workers begin with their imports done

Figures = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much is measured; the figures mean the same."""

    rounds: int = 5
    trials: int = 300  # of one measurement of throughput
    blocks: int = 10
    slow_trials: int = 5  # behind the latency


QUICK = Size(rounds=1, trials=64, blocks=2, slow_trials=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and trials")
    parser.add_argument("--json", action="store_true", help="no table")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    CONTEXT.set_forkserver_preload(["bench.coordination"])
    with server() as url:
        figures = measure(url, QUICK if arguments.quick else Size())
    if not arguments.json:
        Console().print(table(figures))
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def measure(url: URL, size: Size) -> Figures:
    template, large = fill(url, FINISHED), fill(url, FINISHED_COLD)
    return (
        measure_cpu(template, size)
        | measure_wire(template, size)
        | measure_throughput(template, size)
        | (measure_cold_start(template, large, size))
    )


def table(figures: Figures) -> Table:
    rows = Table("figure", "measured", "bar", "met")
    for key, value in figures.items():
        kind, bar = BARS.get(key, ("", math.nan))
        is_met = value <= bar if kind == AT_MOST else value >= bar
        rows.add_row(key, f"{value:.4g}", *((f"{kind} {bar:g}", "yes" if is_met else "NO") if kind else ()))
    return rows


# The same trial for all


def open_study(variant: str, url: URL, seed: int = 0) -> optuna.Study:
    text = url.render_as_string(hide_password=False)
    storage = PostgresStorage(url) if variant == "ours" else optuna.storages.get_storage(text)
    sampler, pruner = optuna.samplers.TPESampler(seed=seed), optuna.pruners.MedianPruner()
    return optuna.load_study(study_name=STUDY, storage=storage, sampler=sampler, pruner=pruner)


def begin(study: optuna.Study) -> optuna.Trial:
    if not isinstance(study._storage, PostgresStorage):
        return study.ask()
    claim = study._storage.claim(study._study_id, "bench")
    assert claim.trial_id is not None
    return optuna.Trial(study, claim.trial_id)


def run_trial(study: optuna.Study) -> None:
    trial = begin(study)
    loss = suggest(trial)
    if isinstance(study._storage, PostgresStorage):
        study._storage.flush(trial._trial_id)
    for step in range(REPORTS):
        trial.report(loss + 1 / (step + 1), step)
        trial.should_prune()
    study.tell(trial, loss)


def suggest(trial: optuna.Trial) -> float:
    warmup = trial.suggest_float("warmup", 0, 1)
    learning_rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    epochs = trial.suggest_int("epochs", 1, 20)
    batch_size = trial.suggest_int("batch_size", 8, 256, log=True)
    kind = trial.suggest_categorical("kind", ["mnrl", "triplet", "contrastive"])
    decay = trial.suggest_float("decay", 0, 0.1)
    distance = (warmup - 0.3) ** 2 + (math.log10(learning_rate) + 3) ** 2 + (decay - 0.05) ** 2
    return distance + epochs / 20 + math.log2(batch_size) / 8 + len(kind) / 10


def in_memory(trials: list[optuna.trial.FrozenTrial]) -> optuna.Study:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner())
    study.add_trials(trials)
    return study


# Databases


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
    storage = PostgresStorage(template.update_query_dict(NOT_SAFE))
    study = optuna.create_study(study_name=STUDY, storage=storage)
    storage.manage(study._study_id, budget=10**6, lease_s=60)
    for trial in history.get_trials(deepcopy=False):
        storage.create_new_trial(study._study_id, trial)
    storage.remove_session()
    execute(template, "VACUUM ANALYZE")
    return template


@contextmanager
def copies(template: URL) -> Iterator[dict[str, URL]]:
    """One for each variant; the plain one as Optuna alone makes it."""
    urls = {variant: template.set(database=f"{variant}_{next(NUMBERS)}") for variant in VARIANTS}
    for url in urls.values():
        execute(template.set(database="postgres"), f"CREATE DATABASE {url.database} TEMPLATE {template.database}")
    for statement in OURS_ALONE:
        execute(urls["plain"], statement)
    yield urls
    for url in urls.values():
        execute(template.set(database="postgres"), f"DROP DATABASE {url.database} WITH (FORCE)")


def execute(url: URL, statement: str) -> None:
    connection = psycopg2.connect(host=url.query["host"], user=url.username, dbname=url.database)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


# Measurements


def measure_cpu(template: URL, size: Size) -> Figures:
    with copies(template) as urls:
        studies = {variant: open_study(variant, url) for variant, url in urls.items()}
        studies["memory"] = in_memory(studies["ours"].get_trials())
        for study in studies.values():
            run_trial(study)
        blocks = [{name: cpu_ms(study) for name, study in studies.items()} for _ in range(size.blocks)]
        params = {name: [trial.params for trial in study.get_trials()] for name, study in studies.items()}
    assert params["ours"] == params["plain"] == params["memory"], "they did not do the same work"
    return {
        "cpu_ms": statistics.median(block["ours"] - block["memory"] for block in blocks),
        "cpu_ms_plain": statistics.median(block["plain"] - block["memory"] for block in blocks),
        "cpu_ms_in_memory": statistics.median(block["memory"] for block in blocks),
    }


def cpu_ms(study: optuna.Study) -> float:
    """Of this process, for one trial."""
    started = time.process_time()
    for _ in range(BLOCK_TRIALS):
        run_trial(study)
    return (time.process_time() - started) * 1000 / BLOCK_TRIALS


def measure_wire(template: URL, size: Size) -> Figures:
    """Round trips as the proxy counts them, and what they cost when each takes 20 ms."""
    with FaultProxy(template) as proxy, copies(template) as urls:
        studies = {name: open_study(name, proxy.url.set(database=url.database)) for name, url in urls.items()}
        trips = {name: round_trips(proxy, study) for name, study in studies.items()}
        proxy.set_latency(LATENCY_S)
        slow_s: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for name in VARIANTS * size.slow_trials:
            started = time.perf_counter()
            run_trial(studies[name])
            slow_s[name].append(time.perf_counter() - started)
    ours_s, plain_s = (statistics.median(slow_s[name]) for name in VARIANTS)
    return {
        "round_trips": trips["ours"],
        "round_trips_plain": trips["plain"],
        "latency_20ms": ours_s / plain_s,
        "latency_20ms_trial_ms": ours_s * 1000,
        "latency_20ms_trial_ms_plain": plain_s * 1000,
    }


def round_trips(proxy: FaultProxy, study: optuna.Study) -> float:
    run_trial(study)
    before = proxy.round_trips()
    for _ in range(BLOCK_TRIALS):
        run_trial(study)
    return (proxy.round_trips() - before) / BLOCK_TRIALS


def measure_throughput(template: URL, size: Size) -> Figures:
    rounds = []
    for _ in range(size.rounds):
        per_s = {}
        for variant, workers in RUNS:
            with copies(template) as urls:
                per_s[variant, workers] = trials_per_s(variant, urls[variant], workers, size.trials)
        rounds.append(per_s)
    figures = {
        "throughput_8": statistics.median(per_s["ours", 8] / per_s["plain", 8] for per_s in rounds),
        "throughput_32": statistics.median(per_s["ours", 32] / per_s["plain", 32] for per_s in rounds),
        "throughput_32_over_2": statistics.median(per_s["ours", 32] / per_s["ours", 2] for per_s in rounds),
    }
    for variant, workers in RUNS:
        figures[f"trials_per_s_{variant}_{workers}"] = statistics.median(per_s[variant, workers] for per_s in rounds)
    return figures


def trials_per_s(variant: str, url: URL, workers: int, trials: int) -> float:
    barrier, left = CONTEXT.Barrier(workers + 1, timeout=TIMEOUT_S), CONTEXT.Value("i", trials)
    arguments = [(variant, url, seed, barrier, left) for seed in range(workers)]
    processes = [CONTEXT.Process(target=work, args=those, daemon=True) for those in arguments]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    barrier.wait()
    elapsed_s = time.perf_counter() - started
    for process in processes:
        process.join()
    return trials / elapsed_s


def work(variant: str, url: URL, seed: int, barrier: Barrier, left: Synchronized[int]) -> None:
    try:
        study = open_study(variant, url, seed)
        run_trial(study)  # loads the finished trials
        barrier.wait()
        while is_one_left(left):
            run_trial(study)
        barrier.wait()
    except BaseException:
        barrier.abort()
        raise


def is_one_left(left: Synchronized[int]) -> bool:
    with left.get_lock():
        left.value -= 1
        return left.value >= 0


def measure_cold_start(template: URL, large: URL, size: Size) -> Figures:
    rounds = []
    with ExitStack() as stack:
        small, urls = stack.enter_context(copies(template)), stack.enter_context(copies(large))
        for _ in range(size.rounds):
            rounds.append({name: cold_start_in_own_process(name, small[name], urls[name]) for name in VARIANTS})
    return {
        "cold_start_5000": statistics.median(seconds["ours"] / seconds["plain"] for seconds in rounds),
        "cold_start_5000_ms": statistics.median(seconds["ours"] for seconds in rounds) * 1000,
        "cold_start_5000_ms_plain": statistics.median(seconds["plain"] for seconds in rounds) * 1000,
    }


def cold_start_in_own_process(variant: str, small: URL, url: URL) -> float:
    with CONTEXT.Pool(1) as pool:
        return pool.apply(cold_start_s, (variant, small, url))


def cold_start_s(variant: str, small: URL, url: URL) -> float:
    """To the first trial of a new worker."""
    run_trial(open_study(variant, small))  # elsewhere, so that every import is done
    started = time.perf_counter()
    begin(open_study(variant, url))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
