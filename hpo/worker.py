"""A worker: claims trials, has them trained by its trainer process, reports and tells. Loads no torch."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from types import FrameType

import optuna
import psycopg2
from sqlalchemy import URL

from hpo.config import StudyFile, models, revisions
from hpo.devices import hold_gpu, own_device, visible_gpus
from hpo.ending import end_if_due
from hpo.ensemble import keep_best
from hpo.errors import HpoError, InputError, Interrupted, SetupError, in_words
from hpo.log import DEFECT
from hpo.notify import Notifier, webhook_url
from hpo.pause import pause_reason
from hpo.shared_checkpoints import SharedCheckpoints
from hpo.study import open_study, refuse_other_versions
from hpo.trainer_process import TrainerProcess
from hpo.trial_run import POLL_S, STOP_PATIENCE_S, Worker, have_incidents, run_trial
from objectives.model_files import fetch
from storage import terms, workers
from storage.connection import Unavailable
from storage.keeper import Keeper
from storage.native import PostgresStorage
from storage.workers import Place

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
MAX_BUGS_IN_A_ROW = 3
MAX_FAULTS_IN_A_ROW = 2  # of the device
NEWS_S = 3.0  # for the last news to arrive; one that is stopped leaves them to the others


def work(url: URL, name: str, *, share_gpu: bool = False) -> int:
    """Runs trials until the study is finished or its box is drained (0), or a signal comes (75).

    Raises InputError, SetupError, HpoError, Unavailable.
    """
    _end_with_launcher()
    webhook_url()  # a wrong one is refused before anything is done
    held = [hold_gpu(gpu, name, share=share_gpu) for gpu in visible_gpus()[:1]]
    trainer = TrainerProcess()
    storage = PostgresStorage(url, interrupted=lambda: trainer.stopped)
    study, file = open_study(storage, name)
    own_name, code = _own_name(), DEFECT
    if workers.register(storage.ask, own_name, study._study_id, _place(own_name)):
        logger.info("this box is drained; no trial is begun")
        code = 0
    try:
        code = _work(url, own_name, storage, study, file, trainer) if code else 0
        return code
    except Exception as error:
        code = words[1] if (words := in_words(error)) else DEFECT
        raise
    finally:
        storage.patience_s = STOP_PATIENCE_S
        with suppress(Unavailable, psycopg2.Error):
            workers.leave(storage.ask, own_name, code)
        for lock in held:
            lock.close()


def _work(
    url: URL, own_name: str, storage: PostgresStorage, study: optuna.Study, file: StudyFile, trainer: TrainerProcess
) -> int:
    notifier = Notifier(url, file.name)
    storage.patience_s = file.patience_s
    trainer.deadlines, trainer.limits = file.deadlines, file.limits
    refuse_other_versions(study)
    have_incidents(storage, file)
    for model in models(file):  # the trainer asks no hub
        logger.info("model %s: %s", model, fetch(model, revisions(file).get(model)))
    checkpoints = SharedCheckpoints(file.name, file.checkpoints.folder)
    checkpoints.tidy(trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())
    study.pruner = optuna.pruners.NopPruner()  # hpo/pruning.py asks Optuna's
    _stop_on_signals(trainer)
    is_drained, is_unknown = threading.Event(), threading.Event()

    def drain(is_known: bool) -> None:  # from the keeper's thread; the signal's handler runs in the main one
        if is_known:
            is_drained.set()
            logger.info("this box is drained: the trial in hand is given back")
        else:
            is_unknown.set()
        os.kill(os.getpid(), signal.SIGTERM)

    keeper = Keeper(storage, url, study._study_id, file.lease_s, own_name, drain)
    keeper.start()
    notifier.start()
    try:
        code = _claim_and_run(Worker(own_name, study, storage, file, keeper, trainer, checkpoints, notifier))
        if is_unknown.is_set():
            raise KeyError(own_name)
        if code == 0:
            keep_best(study, file)
        return 0 if is_drained.is_set() else code
    except KeyError:
        _explain_what_is_missing(storage, study, own_name)
        raise
    finally:
        keeper.stop()
        trainer.close()
        notifier.stop(0.0 if trainer.stopped else NEWS_S)


def _explain_what_is_missing(storage: PostgresStorage, study: optuna.Study, own_name: str) -> None:
    """Raises InputError, Interrupted."""
    if terms.read(storage.ask, study._study_id) is None:
        raise InputError(
            f"study {study.study_name!r} was deleted while this worker ran; its trial is gone with it"
        ) from None
    if not workers.is_known(storage.ask, own_name):
        raise Interrupted("the database was restored and knows this worker no more; it is to begin anew") from None


def _own_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _place(own_name: str) -> Place:
    """Whoever starts workers in this place says which it is; one started by hand is its own place."""
    host, _, process = own_name.rpartition(":")
    return Place(host, os.environ.get("HPO_SLOT", f"process {process}"), own_device(), os.environ.get("HPO_LAUNCH"))


def _end_with_launcher() -> None:
    """Its launcher would start others in its place when it comes back."""
    if "HPO_LAUNCH" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop_on_signals(trainer: TrainerProcess) -> None:
    """The first signal stops the trainer, so that the trial is given back; a second Ctrl-C leaves at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends two within milliseconds where there is no grace
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
        last.append(run_trial(worker, claim))
        worker.notifier.wake()
        if last[-MAX_BUGS_IN_A_ROW:] == ["bug"] * MAX_BUGS_IN_A_ROW:
            raise HpoError(f"{MAX_BUGS_IN_A_ROW} trials in a row failed; why is in their attribute `trace`")
        if last[-MAX_FAULTS_IN_A_ROW:] == ["device"] * MAX_FAULTS_IN_A_ROW:
            raise SetupError(f"the device failed {MAX_FAULTS_IN_A_ROW} times in a row; the log says how. Reset the GPU")
    return Interrupted.exit_code
