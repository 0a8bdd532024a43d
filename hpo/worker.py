"""A worker: claims trials, has them trained by its trainer process, reports and tells. Loads no torch."""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy import URL

from hpo.config import StudyFile
from hpo.config import searched
from hpo.config import trial_config
from hpo.errors import HpoError
from hpo.errors import Interrupted
from hpo.errors import SetupError
from hpo.study import is_baseline
from hpo.study import make_pruner
from hpo.study import make_sampler
from hpo.study import open_study
from hpo.study import refuse_other_versions
from hpo.study import stored_budget
from hpo.trainer_process import TrainerDied
from hpo.trainer_process import TrainerProcess
from search_spaces.space import suggest
from storage.claims import Claims
from storage.engine import open_storage

logger = logging.getLogger(__name__)

POLL_S = 1.0  # while other workers finish the last trials
MAX_ATTEMPTS = 3  # of a trial whose trainer dies
MAX_BUGS_IN_A_ROW = 3
ATTEMPTS = "hpo:attempts"


@dataclass(frozen=True)
class Worker:
    """What one worker holds while it runs."""

    study: optuna.Study
    file: StudyFile
    claims: Claims
    trainer: TrainerProcess


def work(url: URL, name: str) -> int:
    """Runs trials until the study is finished (0) or a signal comes (75). Raises SetupError, HpoError."""
    storage = open_storage(url)
    study, file = open_study(storage, name)
    refuse_other_versions(study)
    study.pruner = make_pruner(file)
    trainer = TrainerProcess()
    _stop_on_signals(trainer)
    try:
        with Claims(url, study) as claims:
            return _claim_and_run(Worker(study, file, claims, trainer))
    finally:
        trainer.stop()


def _stop_on_signals(trainer: TrainerProcess) -> None:
    """The first signal stops the trainer, so that the trial is given back; a second one leaves at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        trainer.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _claim_and_run(worker: Worker) -> int:
    bugs_in_a_row = 0
    while not worker.trainer.stopped.is_set():
        budget = stored_budget(worker.study)
        trial = worker.claims.claim(budget)
        if trial is not None:
            bugs_in_a_row = bugs_in_a_row + 1 if _run_trial(worker, trial) == "bug" else 0
            if bugs_in_a_row == MAX_BUGS_IN_A_ROW:
                raise HpoError(f"{bugs_in_a_row} trials in a row failed; why is in their attribute `trace`")
        elif worker.claims.counts()["finished"] >= budget:
            return 0
        else:
            worker.trainer.stopped.wait(POLL_S)
    return Interrupted.exit_code


def _run_trial(worker: Worker, trial: optuna.Trial) -> str:
    """One claimed trial from parameters to record; returns how it ended. Raises SetupError, the trial given back."""
    started = time.monotonic()
    worker.study.sampler = make_sampler(worker.file, trial.number)
    parameters = suggest(searched(worker.file).parameters, trial)
    logger.info("trial %d started: %s", trial.number, parameters)
    try:
        config = trial_config(worker.file, parameters, trial.number)
        message = worker.trainer.run(config, lambda *progress: _on_report(trial, *progress))
        if message["event"] == "setup":
            worker.claims.give_back(trial)
            raise SetupError(message["message"])
        _record(worker.study, trial, message)
    except TrainerDied as error:
        return _give_back_or_fail(worker, trial, str(error))
    except optuna.exceptions.UpdateFinishedTrialError:
        logger.error("trial %d was ended by somebody else; its result here is dropped", trial.number)
        message = {"event": "lost"}
    worker.claims.release(trial)
    logger.info("trial %d ended: %s after %.0f s", trial.number, _in_words(message), time.monotonic() - started)
    return str(message["event"])


def _on_report(trial: optuna.Trial, step: int, epoch: float, scores: dict[str, float]) -> str:
    """Baselines are never pruned: the table at the end compares with their full training."""
    trial.report(scores["spearman"], step)
    logger.info("trial %d epoch %.2f: spearman %.4f", trial.number, epoch, scores["spearman"])
    return "prune" if not is_baseline(trial) and trial.should_prune() else "go on"


def _record(study: optuna.Study, trial: optuna.Trial, message: dict[str, Any]) -> None:
    scores = message.get("scores", {})
    attributes = {key: value for key, value in message.items() if key not in ("event", "scores")}
    for key, value in (scores | attributes).items():
        trial.set_user_attr(key, value)
    if message["event"] == "infeasible":
        # Told as pruned with a violated constraint, so that the sampler learns to stay away.
        trial.set_constraint(message["reason"], 1.0)
        study.tell(trial, state=TrialState.PRUNED)
    elif message["event"] == "bug":
        study.tell(trial, state=TrialState.FAIL)
    elif message["stop_reason"] == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, scores["spearman"])


def _give_back_or_fail(worker: Worker, trial: optuna.Trial, reason: str) -> str:
    """An interrupted trial waits for another try; one whose trainer keeps dying does so MAX_ATTEMPTS times."""
    stored = trial.storage.get_trial_system_attrs(trial._trial_id).get(ATTEMPTS, 0)
    attempts = 1 + int(stored)
    if not worker.trainer.stopped.is_set():
        trial.storage.set_trial_system_attr(trial._trial_id, ATTEMPTS, attempts)
        if attempts == MAX_ATTEMPTS:
            trial.set_user_attr("trace", reason)
            worker.study.tell(trial, state=TrialState.FAIL)
            worker.claims.release(trial)
            logger.error("trial %d failed: %s, %d times", trial.number, reason, attempts)
            return "bug"
    worker.claims.give_back(trial)
    logger.warning("trial %d given back: %s", trial.number, reason)
    return "interrupted"


def _in_words(message: dict[str, Any]) -> str:
    if message["event"] != "result":
        return str(message["event"])
    spearman = message["scores"]["spearman"]
    return f"{message['stop_reason']} at epoch {message['stop_epoch']:.2f}, spearman {spearman:.4f}"
