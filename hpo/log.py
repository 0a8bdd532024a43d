"""A worker's log: a line for each event of a trial, as text or as JSON, and how a command ends in it."""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum

from hpo.errors import in_words

DEFECT = 70  # exit code of what nobody foresaw, with its trace in the log; a supervisor starts the worker again
FIELDS = ("trial", "state", "value", "seconds")

logger = logging.getLogger(__name__)


class LogFormat(StrEnum):
    text = "text"
    json = "json"


class JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, message, and of an event its trial's number, state, value and seconds."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, allow_nan=False)


def configure(form: LogFormat) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == LogFormat.json else logging.Formatter("%(asctime)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", "Fixed parameter .* out of range")  # a baseline may lie outside of the space


def trial_event(
    number: int,
    state: str,
    words: str,
    *,
    value: float | None = None,
    seconds: float | None = None,
    level: int = logging.INFO,
) -> None:
    """`trial 7 complete: spearman 0.5731, 83 s (WORDS)`; what is None is left out."""
    finite = value if value is not None and math.isfinite(value) else None
    found = {"trial": number, "state": state, "value": finite, "seconds": seconds and round(seconds, 1)}
    parts = [f"spearman {value:.4f}"] if value is not None else []
    parts += [f"{seconds:.0f} s"] if seconds is not None else []
    text = f"{', '.join(parts)} ({words})" if parts and words else ", ".join(parts) or words
    logger.log(level, "trial %d %s%s", number, state, f": {text}" if text else "", extra=found)


def in_log(form: LogFormat, work: Callable[[], int]) -> int:
    """The exit code of a command whose errors belong into its log."""
    try:
        return work()
    except Exception as error:
        if (words := in_words(error)) is None:
            logger.exception("a defect of this program; please report it with what follows")
            return DEFECT
        if form == LogFormat.json:
            logger.error(words[0])
        else:
            print(f"hpo: {words[0]}", file=sys.stderr)
        return words[1]
