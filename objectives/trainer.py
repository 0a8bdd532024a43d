"""The trainer process: `python -m objectives.trainer`, started by a worker and kept warm between trials.

Lines of JSON: a TrialConfig comes in on stdin; `report` lines go out, each answered by a verdict; one last line says
how the trial ended (`result`, `infeasible`, `setup` or `bug`). When stdin ends, whoever asked is gone: exit at once.
The pipe to the worker is kept apart from standard output, so that a library that prints cannot garble it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from dataclasses import asdict
from typing import Any

import torch

from objectives.config import TrialConfig
from objectives.evaluation import Collapsed
from objectives.finetune import finetune
from objectives.incidents import DataError
from objectives.models import ModelError
from objectives.training import Diverged
from objectives.training import Progress
from objectives.training import Report

INFEASIBLE = (Collapsed, Diverged, torch.OutOfMemoryError, MemoryError)
BROKEN_SETUP = (DataError, ModelError)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_stdin, args=(lines,), daemon=True).start()

    def report(progress: Progress) -> Any:
        answers.write(_line("report", **asdict(progress)))
        return json.loads(lines.get())

    while True:
        answers.write(_run(lines.get(), report))


def _read_stdin(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _line(event: str, **content: Any) -> str:
    """Raises ValueError for NaN and infinity: neither may become a value."""
    return json.dumps({"event": event, **content}, allow_nan=False) + "\n"


def _run(line: str, report: Report) -> str:
    """How the trial ended, as one message."""
    try:
        return _line("result", **asdict(finetune(TrialConfig.model_validate_json(line), report).result))
    except INFEASIBLE as error:
        return _line("infeasible", reason=type(error).__name__, message=str(error))
    except BROKEN_SETUP as error:
        return _line("setup", message=str(error))
    except Exception as error:
        return _line("bug", trace=_scrubbed(error))


def _scrubbed(error: Exception) -> str:
    """Type and places. The message only of a RuntimeError, torch's own: others may quote a ticket."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    message = str(error).splitlines()[0] if isinstance(error, RuntimeError) and str(error) else ""
    return "\n".join([*frames, f"{type(error).__name__}: {message}".rstrip(": ")])


if __name__ == "__main__":
    main()
