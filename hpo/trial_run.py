"""One claimed trial in a worker: proposed, trained by the trainer process, reported, recorded or given back."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.trial import TrialState
from pydantic import ValidationError

from hpo.config import StudyFile, trial_config
from hpo.datasets import cache_folder, is_here
from hpo.datasets import fetch as fetch_incidents
from hpo.ensemble import keep_best, kept_model, least_to_keep
from hpo.errors import SetupError
from hpo.feasible import excesses, floors_of
from hpo.log import trial_event
from hpo.memory import ladder
from hpo.notify import Notifier
from hpo.proposals import propose
from hpo.pruning import PLANNED, WHY_PRUNED, decide_of
from hpo.shared_checkpoints import SharedCheckpoints
from hpo.standing import CONFIRMS, JUDGES, WAIT, standing_of, why_skipped
from hpo.study import is_baseline, parameters_of
from hpo.trainer_process import TrainerDied, TrainerProcess
from objectives.config import Job
from objectives.reading import DataError
from storage.connection import Unavailable
from storage.keeper import Keeper
from storage.leases import Claim, LeaseLost
from storage.native import PostgresStorage

POLL_S = 1.0  # while other workers finish the last trials
STOP_PATIENCE_S = 3.0  # for giving a trial back when stopped; the lease's end does it otherwise
SEND_PATIENCE_S = 3.0  # for the last checkpoint to arrive in a bucket; otherwise the one before counts


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


def run_trial(worker: Worker, claim: Claim) -> str:
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
        record(worker.study, worker.file, claim.trial_id, message | {"worker": worker.name})
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
        trial_event(number, "lost", f"its result here is dropped: {error}", level=logging.ERROR)
        return "lost"
    _log_end(number, message, time.monotonic() - started)
    return str(message["event"])


def _train(worker: Worker, trial_id: int) -> dict[str, Any]:
    found = worker.storage.get_trial(trial_id)
    confirms = CONFIRMS in found.user_attrs
    if confirms and (why := why_skipped(standing_of(worker.study.get_trials(deepcopy=False)), found)):
        return {"event": "wait"} if why == WAIT else {"event": "skipped", WHY_PRUNED: why}
    # Stored whole: a worker that dies from here on leaves a trial that another can run as it is.
    trial = propose(worker.storage, worker.study, worker.file, trial_id)
    parameters = parameters_of(trial)
    trial_event(trial.number, "started", str(parameters))
    have_incidents(worker.storage, worker.file)  # they may have been cleaned away
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
        report = partial(_on_report, worker, trial, time.monotonic())
        message = worker.trainer.run(rung, partial(_on_start, worker, trial), report, send)
        if message["event"] != "out_of_memory":
            return message
        words = f"{memory or 'whole batches'}: {message['message']}"
        trial_event(trial.number, "out of memory", words, level=logging.WARNING)
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
        trial_event(trial.number, "resumed", f"from {examples} examples")


def _on_report(
    worker: Worker, trial: optuna.Trial, started: float, step: int, epoch: float, scores: dict[str, float]
) -> str:
    """Baselines are never pruned: the table at the end compares with their full training."""
    _report(trial, step, scores["spearman"])
    seconds = time.monotonic() - started
    trial_event(trial.number, "report", f"epoch {epoch:.2f}", value=scores["spearman"], seconds=seconds)
    if is_baseline(trial) or (decision := decide_of(worker.study, worker.file, trial.number)) is None:
        return "go on"
    trial.set_user_attr(WHY_PRUNED, decision.why)
    return decision.verdict


def _report(trial: optuna.Trial, step: int, spearman: float) -> None:
    """Once: a run that ran out of memory may have come as far before."""
    if step not in trial.storage.get_trial(trial._trial_id).intermediate_values:
        trial.report(spearman, step)


def record(study: optuna.Study, file: StudyFile, trial_id: int, message: dict[str, Any]) -> None:
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
            trial_event(number, "given back", "the worker was stopped", level=logging.WARNING)
        except Unavailable as error:
            trial_event(number, "given back", f"when its lease runs out: {error}", level=logging.WARNING)
        return "interrupted"
    if not worker.storage.release(claim.trial_id, reason=reason):
        trial_event(number, "lost", "its lease was lost; what was trained here is dropped", level=logging.ERROR)
        return "lost"
    state = worker.storage.get_trial(claim.trial_id).state
    if state.is_finished():
        worker.checkpoints.remove(number)
    trial_event(number, f"is {state.name}", f"{reason} (attempt {claim.attempt})", level=logging.ERROR)
    return "bug" if state == TrialState.FAIL and event != "device" else event


def _log_end(number: int, message: dict[str, Any], seconds: float) -> None:
    if message["event"] != "result":
        state, why, value = str(message["event"]), str(message.get("reason", "")), None
    else:
        state = "pruned" if message["stop_reason"] == "pruned" else "complete"
        why = f"{message['stop_reason']} at epoch {message['stop_epoch']:.2f}"
        value = message["scores"]["spearman"]
    trial_event(number, state, why, value=value, seconds=seconds)


def have_incidents(storage: PostgresStorage, file: StudyFile) -> None:
    try:
        fetch_incidents(storage, file.incidents)
    except DataError as error:
        raise SetupError(str(error)) from None
