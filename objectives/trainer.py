"""The trainer process: `python -m objectives.trainer`, started by a worker and kept warm between trials.

Lines of JSON: a Job comes in on stdin; `started` goes out with what a checkpoint spares; `report` lines go out, each
answered by a verdict, `checkpoint` when one was written, and `alive` in between; one last line says how the trial ended
(`result`, `interrupted`, `infeasible`, `out_of_memory`, `device`, `setup` or `bug`). The line "stop" asks the trial in
hand to stop at a checkpoint. When stdin ends, the worker is gone: exit at once. The pipe to the worker is kept apart
from standard output, so that a library that prints cannot garble it.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from objectives.checkpoints import CheckpointError
from objectives.config import ALIVE_S, Job
from objectives.device import DeviceError
from objectives.ensemble import keep_model
from objectives.evaluation import Collapsed
from objectives.finetune import finetune, judge_test
from objectives.model_files import ModelError
from objectives.progress import Diverged, Interrupted, Interruptions, Progress, Unsuitable
from objectives.reading import DataError

INFEASIBLE = (Collapsed, Diverged, Unsuitable)
OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")  # what torch says of it
BROKEN_SETUP = (DataError, ModelError, DeviceError, CheckpointError)
STOP = '"stop"'
PR_SET_PDEATHSIG = 1  # of Linux


class Pipe:
    """Both directions to the worker; `is_asked_to_stop` from the moment that it says so."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._sent_at = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def receive(self) -> str:
        return self._lines.get()

    def send(self, line: str) -> None:
        self._answers.write(line)
        self._sent_at = time.monotonic()

    def is_asked_to_stop(self) -> bool:
        """Asked again and again while training goes on, so this also says that it does."""
        if time.monotonic() - self._sent_at > ALIVE_S:
            self.send(_line("alive"))
        return self._stop.is_set()

    def _read(self) -> None:
        for line in sys.stdin:
            if line.strip() == STOP:
                self._stop.set()
                continue
            if line.startswith("{"):  # a new job; a verdict must not hide what was asked
                self._stop.clear()
            self._lines.put(line)
        os._exit(0)


def main() -> None:
    with suppress(AttributeError):  # where there is no prctl
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a loop in C hears of no other end of its worker
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm tells every process of a step; here the worker's word counts
    pipe = Pipe()
    gc.freeze()  # what the libraries loaded stays, and collecting is quick
    while True:
        pipe.send(_run(pipe.receive(), pipe))
        gc.collect()  # a model refers to itself, and left to itself Python collects once in dozens of trials


def _line(event: str, **content: Any) -> str:
    """Raises ValueError for NaN and infinity: neither may become a value."""
    return json.dumps({"event": event, **content}, allow_nan=False) + "\n"


def _run(line: str, pipe: Pipe) -> str:
    """How the trial ended, as one message."""
    try:
        return _train(Job.model_validate_json(line), pipe)
    except Interrupted:
        return _line("interrupted")
    except INFEASIBLE as error:
        return _line("infeasible", reason=type(error).__name__, message=str(error))
    except BROKEN_SETUP as error:
        return _line("setup", message=str(error))
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if is_out_of_memory(error):
            return _line("out_of_memory", message=_in_a_line(error))
        if isinstance(error, RuntimeError) and "CUDA error" in str(error):
            return _line("device", message=_in_a_line(error))
        return _line("bug", trace=_scrubbed(error))


def _train(job: Job, pipe: Pipe) -> str:
    def report(progress: Progress) -> Any:
        pipe.send(_line("report", **asdict(progress)))
        return json.loads(pipe.receive())

    def on_start(planned: int, examples: int, curve: list[Progress]) -> None:
        steps = [(progress.step, progress.scores["spearman"]) for progress in curve]
        pipe.send(_line("started", planned=planned, examples=examples, curve=steps))

    interruptions = Interruptions(
        folder=Path(job.checkpoint_folder) if job.checkpoint_folder else None,
        every_s=job.checkpoint_every_s,
        trial=hashlib.sha256(job.config.model_dump_json().encode()).hexdigest(),
        is_asked=pipe.is_asked_to_stop,
        on_start=on_start,
        on_checkpoint=lambda: pipe.send(_line("checkpoint")),
    )
    cache = Path(job.cache) if job.cache else None
    trained = finetune(job.config, report, interruptions, job.memory, cache)
    is_complete = trained.result.stop_reason != "pruned"
    if job.keep_in and is_complete and trained.result.scores["spearman"] > job.keep_above:
        keep_model(trained.save, Path(job.keep_in), job.config)
    judged = {"test": judge_test(trained.encoder, job.config, cache, interruptions.check)} if job.judge_test else {}
    return _line("result", **asdict(trained.result), **judged)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _scrubbed(error: BaseException) -> str:
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    return "\n".join([*frames, _in_a_line(error)])


def _in_a_line(error: BaseException) -> str:
    """Its message only if it is a RuntimeError, torch's own: others may quote a ticket."""
    message = str(error).splitlines()[0] if isinstance(error, RuntimeError) and str(error) else ""
    return f"{type(error).__name__}: {message}".rstrip(": ")


if __name__ == "__main__":
    main()
