"""Tells a webhook what people wait for: a new best trial, a pause, the end of a study.

What is to be told follows from the tables, whoever looks and whenever; there it is also noted what was told. So a
message that a killed worker or a broken receiver lost is sent by the next one that looks, unless it is out of date.
"""

from __future__ import annotations

import html
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from hpo.config import CONFIRM, StudyFile
from hpo.errors import InputError
from hpo.feasible import best_trials
from hpo.pause import pause_reason, resumed_from
from hpo.study import BASELINE, is_baseline, is_copied, open_study, ours
from storage import notices, terms
from storage.native import PostgresStorage

logger = logging.getLogger(__name__)

WEBHOOK, WEBHOOK_FILE = "HPO_WEBHOOK", "HPO_WEBHOOK_FILE"
RIGHT_URL = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[!-~]*)?")
RETRY_S = 60.0  # between looks, and until an event that was not told is told again
TIMEOUT_S = 5.0  # of a receiver
SECOND_TRY_S = 1.0  # after an answer that is a refusal
DATABASE_PATIENCE_S = 3.0
WARNING_S = 3600.0  # between warnings

Event = tuple[str, str]  # its name, the same for whoever sees it; what is told


class Notifier:
    """A thread with a connection of its own, so that no trial waits for a receiver; none where no webhook is set."""

    def __init__(self, url: URL, name: str) -> None:
        """Raises InputError for a webhook that cannot be."""
        self._webhook = webhook_url()
        self._url, self._name = url, name
        self._opened: tuple[optuna.Study, StudyFile] | None = None
        self._woken, self._is_ending = threading.Event(), False
        self._warn_from = 0.0
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)

    def start(self) -> None:
        if self._webhook is not None:
            self._thread.start()

    def wake(self) -> None:
        """Something may have happened."""
        self._woken.set()

    def stop(self, wait_s: float) -> None:
        """Returns after a last look, or after so long."""
        self._is_ending = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def _run(self) -> None:
        while True:
            is_last = self._is_ending
            try:
                self._look()
            except Exception as error:  # whatever it is, trials go on; its message may hold the URL
                self._warn(f"{type(error).__name__} while looking for news")
            if is_last:
                return
            self._woken.wait(RETRY_S)
            self._woken.clear()

    def _look(self) -> None:
        if self._opened is None:
            storage = PostgresStorage(self._url, patience_s=DATABASE_PATIENCE_S, interrupted=lambda: self._is_ending)
            self._opened = open_study(storage, self._name)
        study, file = self._opened
        for event, text in news(study, file):
            if notices.claim(ours(study).ask, study._study_id, event, RETRY_S) and self._tell(text):
                notices.mark_sent(ours(study).ask, study._study_id, event)

    def _tell(self, text: str) -> bool:
        assert self._webhook is not None
        try:
            for pause_s in (0.0, SECOND_TRY_S):
                time.sleep(pause_s)
                if 200 <= (status := _post(self._webhook, text)) < 300:
                    return True
            self._warn(f"it answers {status}")
        except (OSError, HTTPException) as error:
            self._warn(f"{type(getattr(error, 'reason', error)).__name__}")
        return False

    def _warn(self, why: str) -> None:
        if time.monotonic() >= self._warn_from:
            self._warn_from = time.monotonic() + WARNING_S
            logger.warning("the webhook was not told (%s); that is tried again", why)


def webhook_url() -> str | None:
    """None if there is none. Raises InputError, which does not show it: who knows it needs no password."""
    url, path = os.environ.get(WEBHOOK), os.environ.get(WEBHOOK_FILE)
    if not url and not path:
        return None
    try:
        url = url or Path(path or "").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise InputError(f"{WEBHOOK_FILE} names no file that can be read; expected one that holds a URL") from None
    if not RIGHT_URL.fullmatch(url):
        source = WEBHOOK if os.environ.get(WEBHOOK) else WEBHOOK_FILE
        raise InputError(f"{source}: expected a URL as https://HOST/PATH, without a user; it is not shown, as a secret")
    return url


def news(study: optuna.Study, file: StudyFile) -> Iterator[Event]:
    """What is so now, told before or not."""
    found = terms.read(ours(study).ask, study._study_id)
    if found is None:
        return
    trials = study.get_trials(deepcopy=False)
    if not file.name.endswith(CONFIRM):  # there one configuration runs again and again
        yield from _new_best(trials, file)
    if reason := pause_reason(study):
        yield f"bug since trial {resumed_from(study)}", reason
    elif since := notices.paused_at(ours(study).ask, study._study_id):
        text = f"study {file.name} was paused by hand; let it go on: hpo study resume {file.name}"
        yield f"paused at {since}", text
    ended = [trial for trial in trials if trial.state.is_finished()]
    is_running = any(trial.state == TrialState.RUNNING for trial in trials)
    if (found.ended or len(ended) >= found.budget) and not is_running:
        yield f"ended after {len(ended)} trials", _end(ended, file, found.ended or "its budget of trials is used up")


def _new_best(trials: Sequence[FrozenTrial], file: StudyFile) -> Iterator[Event]:
    """One that is passed before anybody looks is not told."""
    best = next(iter(best_trials(trials, file, 1)), None)
    if best is None or is_baseline(best):
        return
    others = [trial for trial in trials if _ended_before(trial, best)]
    before = next((trial for trial in best_trials(others, file, len(others)) if not is_baseline(trial)), None)
    baselines = [trial for trial in best_trials(trials, file, len(trials)) if is_baseline(trial)]
    rivals = [(f"trial {before.number}, the best before", before)] if before else []
    if baseline := max(baselines, key=_spearman, default=None):
        rivals.append((f"{baseline.user_attrs[BASELINE]}, the best baseline", baseline))
    gains = [f"{_spearman(best) - _spearman(rival):+.4f} against {name}" for name, rival in rivals]
    text = f"study {file.name}: trial {best.number} is the new best, spearman {_spearman(best):.4f}"
    yield f"best {best.number}", f"{text} ({'; '.join(gains)})" if gains else text


def _ended_before(trial: FrozenTrial, other: FrozenTrial) -> bool:
    ends = trial.datetime_complete, other.datetime_complete
    return ends[0] is not None and ends[1] is not None and ends[0] < ends[1]


def _end(ended: Sequence[FrozenTrial], file: StudyFile, why: str) -> str:
    states = [trial.state for trial in ended if not is_copied(trial)]
    words = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    counts = ", ".join(f"{states.count(state)} {word}" for word, state in words.items())
    text = f"study {file.name} has ended, as {why}: {len(states)} trials ({counts})"
    if file.name.endswith(CONFIRM) or not (best := best_trials(ended, file, 1)):
        return text
    return f"{text}; the best is trial {best[0].number}, spearman {_spearman(best[0]):.4f}"


def _spearman(trial: FrozenTrial) -> float:
    return trial.value or 0.0


def _post(url: str, text: str) -> int:
    """The status of the answer. No redirect is followed: the secret is for that host alone. Raises OSError."""
    opener = OpenerDirector()
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler()):
        opener.add_handler(handler)
    body = json.dumps({"text": html.escape(text, quote=False)}).encode()  # as Slack wants it
    with opener.open(Request(url, body, {"Content-Type": "application/json"}), timeout=TIMEOUT_S) as response:
        return int(response.status)
