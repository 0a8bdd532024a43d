"""A worker: claims trials, has them trained by its trainer process, reports and tells. Loads no torch."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import optuna
from optuna.trial import TrialState
from pydantic import ValidationError
from sqlalchemy import URL

from hpo.config import StudyFile, models, revisions, trial_config
from hpo.datasets import cache_folder, is_here
from hpo.datasets import fetch as fetch_incidents
from hpo.ending import end_if_due
from hpo.ensemble import keep_best, kept_model, least_to_keep
from hpo.errors import HpoError, InputError, Interrupted, SetupError
from hpo.feasible import excesses, floors_of
from hpo.memory import ladder
from hpo.notify import Notifier
from hpo.pause import pause_reason
from hpo.proposals import propose
from hpo.pruning import PLANNED, WHY_PRUNED, decide_of
from hpo.shared_checkpoints import SharedCheckpoints
from hpo.standing import CONFIRMS, JUDGES, WAIT, standing_of, why_skipped
from hpo.study import is_baseline, open_study, parameters_of, refuse_other_versions
from hpo.trainer_process import TrainerDied, TrainerProcess
from objectives.config import Job
from objectives.model_files import fetch
from objectives.reading import DataError
from storage import terms
from storage.connection import Unavailable
from storage.keeper import Keeper
from storage.leases import Claim, LeaseLost
from storage.native import PostgresStorage

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_S = 1.0  # while other workers finish the last trials
MAX_BUGS_IN_A_ROW = 3
MAX_FAULTS_IN_A_ROW = 2  # of the device
STOP_PATIENCE_S = 3.0  # for giving a trial back when stopped; the lease's end does it otherwise
SEND_PATIENCE_S = 3.0  # for the last checkpoint to arrive in a bucket; otherwise the one before counts
NEWS_S = 3.0  # for the last news to arrive; one that is stopped leaves them to the others


@dataclass(frozen=True)
class Worker:
    """What one worker holds while it runs."""

    name: str
    study: optuna.Study
    storage: PostgresStorage
    file: StudyFile
    keeper: Keeper
    trainer: TrainerProcess
    checkpoints: SharedCheckpoints
    notifier: Notifier


def work(url: URL, name: str) -> int:
    """Runs trials until the study is finished (0) or a signal comes (75). Raises SetupError, HpoError, Unavailable."""
    trainer, notifier = TrainerProcess(), Notifier(url, name)
    storage = PostgresStorage(url, interrupted=lambda: trainer.stopped)
    study, file = open_study(storage, name)
    storage.patience_s = file.patience_s
    trainer.deadlines, trainer.limits = file.deadlines, file.limits
    refuse_other_versions(study)
    _have_incidents(storage, file)
    for model in models(file):  # the trainer asks no hub
        logger.info("model %s: %s", model, fetch(model, revisions(file).get(model)))
    checkpoints = SharedCheckpoints(file.name, file.checkpoints.folder)
    checkpoints.tidy(trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())
    study.pruner = optuna.pruners.NopPruner()  # hpo/pruning.py asks Optuna's
    _stop_on_signals(trainer)
    keeper = Keeper(storage, url, study._study_id, file.lease_s)
    keeper.start()
    notifier.start()
    try:
        code = _claim_and_run(Worker(_own_name(), study, storage, file, keeper, trainer, checkpoints, notifier))
        if code == 0:
            keep_best(study, file)
        return code
    except KeyError:
        if terms.read(storage.ask, study._study_id) is not None:
            raise
        raise InputError(f"study {name!r} was deleted while this worker ran; its trial is gone with it") from None
    finally:
        keeper.stop()
        trainer.close()
        notifier.stop(0.0 if trainer.stopped else NEWS_S)


def _have_incidents(storage: PostgresStorage, file: StudyFile) -> None:
    try:
        fetch_incidents(storage, file.incidents)
    except DataError as error:
        raise SetupError(str(error)) from None


def _own_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _stop_on_signals(trainer: TrainerProcess) -> None:
    """The first signal stops the trainer, so that the trial is given back; a second one leaves at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for either in STOP_SIGNALS:
            signal.signal(either, signal.SIG_DFL)
        trainer.stop()

    for either in STOP_SIGNALS:
        signal.signal(either, stop)


def _claim_and_run(worker: Worker) -> int:
    last, is_paused = list[str](), False
    while not worker.trainer.stopped:
        end_if_due(worker.storage, worker.study, worker.file)
        claim = worker.storage.claim(worker.study._study_id, worker.name)
        if claim.verdict == "done":
            return 0
        if claim.trial_id is None:
            if claim.verdict == "paused" and not is_paused:
                logger.warning("study %s is paused; waiting", worker.file.name)
                worker.trainer.discard()  # somebody wants the device
                worker.notifier.wake()
            is_paused = claim.verdict == "paused"
            time.sleep(POLL_S)
            continue
        if reason := pause_reason(worker.study):  # asked now, as the claim's reply has brought the others' trials
            worker.storage.release(claim.trial_id, reason=None)
            raise HpoError(reason)
        last.append(_run_trial(worker, claim))
        worker.notifier.wake()
        if last[-MAX_BUGS_IN_A_ROW:] == ["bug"] * MAX_BUGS_IN_A_ROW:
            raise HpoError(f"{MAX_BUGS_IN_A_ROW} trials in a row failed; why is in their attribute `trace`")
        if last[-MAX_FAULTS_IN_A_ROW:] == ["device"] * MAX_FAULTS_IN_A_ROW:
            raise SetupError(f"the device failed {MAX_FAULTS_IN_A_ROW} times in a row; the log says how. Reset the GPU")
    return Interrupted.exit_code


def _run_trial(worker: Worker, claim: Claim) -> str:
    """One claimed trial from parameters to record; returns how it ended. Raises SetupError, the trial given back."""
    assert claim.trial_id is not None
    started = time.monotonic()
    number = worker.storage.get_trial(claim.trial_id).number
    worker.keeper.hold(claim, worker.trainer.interrupt)
    try:
        message = _train(worker, claim.trial_id)
        if message["event"] == "setup" and not is_here(worker.file.incidents):  # cleaned away as it began
            message = _train(worker, claim.trial_id)
        worker.keeper.drop()
        if message["event"] in ("interrupted", "wait"):
            return _give_back(worker, claim, number, "", message["event"])
        if message["event"] == "setup":
            raise SetupError(message["message"])
        if message["event"] == "device":
            worker.trainer.discard()  # its context is beyond use
            return _give_back(worker, claim, number, message["message"], "device")
        _record(worker.study, worker.file, claim.trial_id, message | {"worker": worker.name})
        worker.checkpoints.remove(number)
    except SetupError:
        worker.keeper.drop()
        worker.storage.release(claim.trial_id, reason=None)
        raise
    except TrainerDied as error:
        worker.keeper.drop()
        return _give_back(worker, claim, number, str(error))
    except (LeaseLost, optuna.exceptions.UpdateFinishedTrialError) as error:
        worker.keeper.drop()
        worker.trainer.discard()
        logger.error("trial %d: its result here is dropped: %s", number, error)
        return "lost"
    logger.info("trial %d ended: %s after %.0f s", number, _in_words(message), time.monotonic() - started)
    return str(message["event"])


def _train(worker: Worker, trial_id: int) -> dict[str, Any]:
    found = worker.storage.get_trial(trial_id)
    confirms = CONFIRMS in found.user_attrs
    if confirms and (why := why_skipped(standing_of(worker.study.get_trials(deepcopy=False)), found)):
        return {"event": "wait"} if why == WAIT else {"event": "skipped", WHY_PRUNED: why}
    # Stored whole: a worker that dies from here on leaves a trial that another can run as it is.
    trial = propose(worker.storage, worker.study, worker.file, trial_id)
    parameters = parameters_of(trial)
    logger.info("trial %d started: %s", trial.number, parameters)
    _have_incidents(worker.storage, worker.file)  # they may have been cleaned away
    try:
        config = trial_config(worker.file, parameters, trial.number)
    except ValidationError:  # a value is right by itself and wrong beside another
        return {"event": "infeasible", "reason": "Contradictory"}
    keep_best(worker.study, worker.file)  # now, as what the claim brought is at hand: no round trip
    job = Job(
        config=config,
        checkpoint_folder=str(worker.checkpoints.folder(trial.number)),
        checkpoint_every_s=worker.file.checkpoints.every_s,
        cache=str(cache_folder()),
        keep_in=None if confirms else str(kept_model(worker.file.name, trial.number)),
        keep_above=least_to_keep(worker.study, worker.file),
        judge_test=found.user_attrs.get(JUDGES, False),
    )
    message: dict[str, Any] = {}
    worker.checkpoints.fetch(trial.number, lambda: worker.trainer.stopped)
    for memory in ladder(job.config):
        rung = job.model_copy(update={"memory": memory})
        send = partial(worker.checkpoints.send, trial.number)
        message = worker.trainer.run(rung, partial(_on_start, worker, trial), partial(_on_report, worker, trial), send)
        if message["event"] != "out_of_memory":
            return message
        logger.warning("trial %d ran out of memory (%s): %s", trial.number, memory, message["message"])
        worker.trainer.discard()
    return message | {"event": "infeasible", "reason": "OutOfMemory"}


def _on_start(worker: Worker, trial: optuna.Trial, planned: int, examples: int, curve: list[tuple[int, float]]) -> None:
    """What an earlier run reported and this one need not repeat is reported again: the claim began with nothing."""
    if PLANNED not in trial.user_attrs:
        trial.set_user_attr(PLANNED, planned)
    for step, spearman in curve:
        _report(trial, step, spearman)
    if examples:
        worker.storage.resumed(trial._trial_id, examples)
        logger.info("trial %d goes on from %d examples", trial.number, examples)


def _on_report(worker: Worker, trial: optuna.Trial, step: int, epoch: float, scores: dict[str, float]) -> str:
    """Baselines are never pruned: the table at the end compares with their full training."""
    _report(trial, step, scores["spearman"])
    logger.info("trial %d epoch %.2f: spearman %.4f", trial.number, epoch, scores["spearman"])
    if is_baseline(trial) or (decision := decide_of(worker.study, worker.file, trial.number)) is None:
        return "go on"
    trial.set_user_attr(WHY_PRUNED, decision.why)
    return decision.verdict


def _report(trial: optuna.Trial, step: int, spearman: float) -> None:
    """Once: a run that ran out of memory may have come as far before."""
    if step not in trial.storage.get_trial(trial._trial_id).intermediate_values:
        trial.report(spearman, step)


def _record(study: optuna.Study, file: StudyFile, trial_id: int, message: dict[str, Any]) -> None:
    """One round trip: attributes and outcome go together."""
    trial = optuna.Trial(study, trial_id)
    scores = message.get("scores", {})
    attributes = {key: value for key, value in message.items() if key not in ("event", "scores")}
    for key, value in (scores | attributes).items():
        trial.set_user_attr(key, value)
    if message["event"] == "result" and message["stop_reason"] != "pruned":
        floors = {} if is_baseline(trial) else floors_of(study.get_trials(deepcopy=False), file)
        for name, excess in excesses(file, scores | message, floors).items():
            trial.set_constraint(name, excess)
    if message["event"] == "infeasible":
        # Told as pruned with a violated constraint, so that the sampler learns to stay away.
        trial.set_constraint(message["reason"], 1.0)
        study.tell(trial, state=TrialState.PRUNED)
    elif message["event"] == "bug":
        study.tell(trial, state=TrialState.FAIL)
    elif message["event"] == "skipped" or message["stop_reason"] == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, scores["spearman"])


def _give_back(worker: Worker, claim: Claim, number: int, reason: str, event: str = "interrupted") -> str:
    """An interrupted trial waits for another try; one whose trainer keeps dying does so three times."""
    assert claim.trial_id is not None
    if event == "wait":  # for the last runs of others; one of those may be cut short and come before this one again
        worker.storage.release(claim.trial_id, reason=None)
        time.sleep(POLL_S)
        return event
    worker.checkpoints.settle(number, SEND_PATIENCE_S)
    if worker.trainer.stopped:
        try:
            worker.storage.release(claim.trial_id, reason=None, patience_s=STOP_PATIENCE_S)
            logger.warning("trial %d given back: the worker was stopped", number)
        except Unavailable as error:
            logger.warning("trial %d waits for its lease to run out: %s", number, error)
        return "interrupted"
    if not worker.storage.release(claim.trial_id, reason=reason):
        logger.error("trial %d: its lease was lost; what was trained here is dropped", number)
        return "lost"
    state = worker.storage.get_trial(claim.trial_id).state
    if state.is_finished():
        worker.checkpoints.remove(number)
    logger.error("trial %d is %s: %s (attempt %d)", number, state.name, reason, claim.attempt)
    return "bug" if state == TrialState.FAIL and event != "device" else event


def _in_words(message: dict[str, Any]) -> str:
    if message["event"] != "result":
        return f"{message['event']} {message.get('reason', '')}".rstrip()
    spearman = message["scores"]["spearman"]
    return f"{message['stop_reason']} at epoch {message['stop_epoch']:.2f}, spearman {spearman:.4f}"
