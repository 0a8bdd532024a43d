"""Looks at a study again and again: a view that stays in its place in a terminal, a line for each trial elsewhere."""

from __future__ import annotations

import io
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console, ConsoleDimensions
from rich.live import Live

from hpo.cells import clean, glyphs_of
from hpo.config import StudyFile
from hpo.devices import device_label, uses
from hpo.display import make_console, status_line
from hpo.errors import InputError
from hpo.live_view import Frame, body
from hpo.status import Snapshot, failure_of, take_snapshot
from hpo.study import ours
from hpo.worker_view import place_of
from storage import terms
from storage.attempts import list_places
from storage.connection import Unavailable

WATCH_S = 2.0  # between two looks
RESIZE_S = 0.2  # a window's new size is noticed
STATUS_S = 60.0  # between two lines that say how far a study is, at least


@dataclass
class Window:
    """The terminal's second screen: neither a new size nor other output leaves anything behind on the first."""

    live: Live
    heard: io.StringIO  # what the program says meanwhile
    gpus: list[str]  # of this box
    notes: list[str] = field(default_factory=list)  # what was heard, each line with its time
    last: Snapshot | None = None
    frame: Frame | None = None
    size: ConsoleDimensions | None = None

    def show(self, snapshot: Snapshot) -> None:
        self._paint(Frame(snapshot, fills_window=True, devices=_devices(self.gpus)))

    def away(self, why: str) -> None:
        if self.frame is not None:
            self._paint(replace(self.frame, away=why))

    def catch_up(self) -> None:
        """With a new size of the window, and with what was said."""
        if self.frame is not None and (self.live.console.size != self.size or self._unheard()):
            self._paint(self.frame)

    def _unheard(self) -> list[str]:
        return self.heard.getvalue().splitlines()[len(self.notes) :]

    def _paint(self, frame: Frame) -> None:
        self.notes += [f"{datetime.now():%H:%M} {line.removeprefix('hpo: ')}" for line in self._unheard()]
        self.frame, self.size = replace(frame, notes=self.notes), self.live.console.size
        self.live.update(self.frame, refresh=True)


@dataclass
class Lines:
    """One for each trial, once, in the order recorded; now and then one that says how far the study is."""

    study: optuna.Study
    told: set[int] = field(default_factory=set)  # numbers of trials
    last: Snapshot | None = None
    said: str = ""
    said_at: float = -math.inf
    is_away: bool = False

    def show(self, snapshot: Snapshot) -> None:
        if new := [trial for trial in snapshot.trials if trial.state.is_finished() and trial.number not in self.told]:
            new.sort(key=lambda trial: (trial.datetime_complete or datetime.max, trial.number))
            places = list_places(ours(self.study).ask, self.study._study_id)
            self._print(*(trial_line(trial, places) for trial in new))
            self.told |= {trial.number for trial in new}
        if self.is_away:
            self._print(f"{datetime.now():%H:%M:%S} the database is back")
            self.is_away = False
        self._say(snapshot)

    def away(self, why: str) -> None:
        if not self.is_away:
            self._print(f"{datetime.now():%H:%M:%S} the database is away: {why}")
            self.is_away = True

    def catch_up(self) -> None:
        """Each line stands as it was printed."""

    def _say(self, snapshot: Snapshot) -> None:
        """Only what is new; of its end tells whoever looks."""
        now, state = time.monotonic(), snapshot.paused or status_line(replace(snapshot, time_left_s=None))
        if state != self.said and now - self.said_at >= STATUS_S and not snapshot.is_over:
            self.said, self.said_at = state, now
            self._print(snapshot.paused or status_line(snapshot))

    def _print(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)  # not by rich: stopped in between, it would print them again


@contextmanager
def open_view(
    console: Console, study: optuna.Study, told: Iterable[int] = (), gpus: Sequence[str] = ()
) -> Iterator[Window | Lines]:
    """`told`: trials of which lines need not tell."""
    if not (console.is_terminal and console.is_interactive):
        yield Lines(study, set(told))
        return
    heard = io.StringIO()
    try:
        screen = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        with redirect_stderr(heard), screen as live:
            yield Window(live, heard, list(gpus))
    finally:
        sys.stderr.write(heard.getvalue())


def watch(console: Console, study: optuna.Study, file: StudyFile) -> Snapshot | None:
    """Until nothing runs any more of a study that is over, or Ctrl-C or SIGTERM comes; what was seen last."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which leaves the terminal as it was
    with open_view(console, study) as view, suppress(KeyboardInterrupt):
        while look(view, study, file) is None or not _is_settled(view.last):
            due = time.monotonic() + WATCH_S
            while time.monotonic() < due:
                time.sleep(RESIZE_S)
                view.catch_up()
    return view.last


def work_in_view(
    study: optuna.Study,
    file: StudyFile,
    run: Callable[[Callable[[], None]], None],
    here: Sequence[str] = (),
    after: Callable[[Snapshot], None] = lambda snapshot: None,
) -> None:
    """Calls `run`, which works on the study and often calls what it is given; `after` is called after each look.

    `here`: GPUs of this box, to be shown.
    """
    due, console = 0.0, make_console()
    recorded = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    with open_view(console, study, recorded, here) as view:

        def refresh() -> None:
            nonlocal due
            view.catch_up()
            if time.monotonic() >= due:
                due = time.monotonic() + WATCH_S
                if (snapshot := look(view, study, file)) is not None:
                    after(snapshot)

        try:
            run(refresh)
        finally:
            look(view, study, file)
    if view.last is not None:
        console.print(status_line(view.last), soft_wrap=True)


def look(view: Window | Lines, study: optuna.Study, file: StudyFile) -> Snapshot | None:
    """None while the database is away. Raises InputError when the study was deleted."""
    try:
        view.last = snapshot = take_snapshot(study, file)
        view.show(snapshot)
    except Unavailable as error:
        view.away(str(error).partition(". Start again")[0])
        return None
    except KeyError:
        if terms.read(ours(study).ask, study._study_id) is not None:
            raise
        raise InputError(f"study {study.study_name!r} was deleted; there is nothing more to see of it") from None
    return snapshot


def print_once(console: Console, snapshot: Snapshot) -> None:
    """The view as it is now; piped, its first line tells all that one line can."""
    if console.is_terminal:
        console.print(Frame(snapshot))
        return
    why = [text for text in (snapshot.paused, snapshot.ended and f"ended: {snapshot.ended}") if text]
    console.print(status_line(snapshot), *why, sep="\n", soft_wrap=True)
    for line in body(snapshot, console.width, None, glyphs_of(console)):
        console.print(line)


def trial_line(trial: FrozenTrial, places: Mapping[str, tuple[str, str]]) -> str:
    """Number, state, value, seconds, where it ran, and why it failed if it did."""
    failure, worker = failure_of(trial), str(trial.user_attrs.get("worker", ""))
    state = failure.kind if failure else trial.state.name.lower()
    value = "-" if trial.value is None else f"{trial.value:.4f}"
    took = f"{trial.duration.total_seconds():.1f} s" if trial.duration else "-"
    where = worker.rpartition(":")[0] or "-"
    if worker in places:
        where += f" {place_of(*places[worker])}"
    why = f"  {failure.reason}" if failure else ""
    return clean(f"trial {trial.number:>4}  {state:<10}  {value:>7}  {took:>9}  {where}{why}")


def _is_settled(snapshot: Snapshot | None) -> bool:
    if snapshot is None:
        return False
    at_work = (row for row in snapshot.workers if row.trial is not None and row.ended is None and not row.is_silent)
    return snapshot.is_over and not any(at_work)


def _devices(gpus: list[str]) -> list[str]:
    return [
        f"{device_label(gpu)}: {use.busy_percent} % busy, {use.used_gib:.0f} of {use.total_gib:.0f} GiB"
        for gpu, use in (uses(gpus) if gpus else {}).items()
    ]
