"""Where trials leave their checkpoints: a folder, or a bucket when boxes share no folder.

The trainer writes to a folder of the box and holds no credentials. The worker carries each checkpoint to the bucket
while training goes on, and fetches what another box has left. Two places per trial are written in turn, so that one is
whole while the other is replaced. A checkpoint proves by its own manifest that it is whole, so nothing here has to.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from optuna.artifacts.exceptions import ArtifactNotFound

from hpo.bucket import Bucket, in_a_line
from hpo.errors import SetupError
from storage.embedded import default_home

logger = logging.getLogger(__name__)

PLACES = ("a", "b")
FETCH_PATIENCE_S = 600.0
REMOVE_PATIENCE_S = 5.0


class SharedCheckpoints:
    """Of a study's trials, of which a worker runs one at a time. What cannot be carried costs repetition, no more."""

    def __init__(self, study: str, location: str | None) -> None:
        """A folder, s3:// or gs://; None: the box's own. Raises SetupError for one that cannot be written."""
        self._bucket = Bucket(location) if location and "://" in location else None
        root = location if location and not self._bucket else default_home() / "checkpoints"
        self._folder, self._key = Path(root) / study, study
        self._carrying, self._sent, self._turn = threading.Thread(), "", 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise SetupError(f"checkpoints cannot be written to {self._folder}: {error.strerror}") from None

    def folder(self, number: int) -> Path:
        return self._folder / str(number)

    def fetch(self, number: int, is_stopped: Callable[[], bool]) -> None:
        """What other boxes have left of the trial now stands beside what this one has."""
        if self._bucket is not None:
            deadline = time.monotonic() + FETCH_PATIENCE_S
            self._carry(self._fetch_both, self._bucket, number)
            while self._carrying.is_alive() and time.monotonic() < deadline and not is_stopped():
                self._carrying.join(0.1)

    def send(self, number: int) -> None:
        """The newest, in a thread; nothing while another is on its way."""
        if self._bucket is not None:
            self._carry(self._send, self._bucket, number)

    def settle(self, number: int, timeout_s: float) -> None:
        """Waits for the newest to arrive, if it does in time."""
        for _ in range(2):  # what is on its way may be older
            self.send(number)
            if self._carrying.is_alive():
                self._carrying.join(timeout_s / 2)

    def remove(self, number: int) -> None:
        shutil.rmtree(self.folder(number), ignore_errors=True)
        if self._bucket is not None:
            if self._carrying.is_alive():
                self._carrying.join(REMOVE_PATIENCE_S)
            self._carry(self._remove_both, self._bucket, number)
            self._carrying.join(REMOVE_PATIENCE_S)

    def tidy(self, ended: Iterable[int]) -> None:
        """Removes what workers that died left of trials that have ended since."""
        there = {path.name for path in self._folder.iterdir()}
        for number in ended:
            if str(number) in there:
                shutil.rmtree(self.folder(number), ignore_errors=True)

    def _carry(self, task: Callable[[Bucket, int], None], bucket: Bucket, number: int) -> None:
        if not self._carrying.is_alive():
            self._carrying = threading.Thread(target=task, args=(bucket, number), daemon=True)
            self._carrying.start()

    def _fetch_both(self, bucket: Bucket, number: int) -> None:
        names = [self._fetch(bucket, number, place) for place in PLACES]
        self._turn = names.index(min(names))  # the older is replaced first

    def _remove_both(self, bucket: Bucket, number: int) -> None:
        for place in PLACES:
            with suppress(Exception):  # what stays is of no use: the trial has ended
                bucket.remove(f"{self._key}/{number}/{place}")

    def _fetch(self, bucket: Bucket, number: int, place: str) -> str:
        try:
            return bucket.get(f"{self._key}/{number}/{place}", self.folder(number))
        except ArtifactNotFound:
            return ""
        except Exception as error:  # whatever the libraries raise
            logger.warning("trial %d: no checkpoint can be fetched: %s", number, in_a_line(error))
            return ""

    def _send(self, bucket: Bucket, number: int) -> None:
        staged = self.folder(number) / ".staged"
        try:
            newest = max(self.folder(number).glob("[0-9]*"))
            if f"{number}/{newest.name}" == self._sent:
                return
            copy = staged / newest.name  # of links, as the trainer removes what has become old
            copy.mkdir(parents=True)
            for path in newest.iterdir():
                os.link(path, copy / path.name)
            bucket.put(f"{self._key}/{number}/{PLACES[self._turn % 2]}", copy)
            self._sent, self._turn = f"{number}/{newest.name}", self._turn + 1
        except Exception as error:
            logger.warning("trial %d: its checkpoint cannot be sent: %s", number, in_a_line(error))
        finally:
            shutil.rmtree(staged, ignore_errors=True)
