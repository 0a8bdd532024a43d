"""What a terminal of any size shows of a study: how far it is, who works on what, and what went wrong."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from hpo.cells import GAP, Glyphs, fit, glyphs_of, packed, text_line, wrapped
from hpo.display import best_in_words, counts_in_words, duration
from hpo.errors import Interrupted
from hpo.status import Failure, Run, Snapshot
from hpo.worker_view import in_short, place_of, state_of
from storage.workers import WorkerRow

MOST_EVENTS, MOST_FAILURES = 8, 5  # lines of what went wrong
LONGEST_BAR, LONGEST_SKETCH, SHORTEST_SKETCH = 100, 60, 4
LONG_GONE_S = 3600.0
WIDE = 100  # columns, from which on there is room for how long a trial has run
RED, YELLOW, DIM = "red", "yellow", "dim"
AT_RIGHT = ("spearman", "seen", "time")


@dataclass(frozen=True)
class Row:
    """A worker, or a trial without one."""

    host: str
    place: str
    run: Run | None
    words: str  # beside its trial, or instead of one
    style: str = ""

    @property
    def is_news(self) -> bool:
        return self.style in (RED, YELLOW)

    @property
    def trial(self) -> str:
        return f"{self.run.trial} {self.run.baseline or ''}".rstrip() if self.run else ""


@dataclass(frozen=True)
class Frame:
    """`fills_window`: with as many lines as that has at most; `away`: why there is no newer snapshot; `notes`: what the
    program said meanwhile; `devices`: of this box.
    """

    snapshot: Snapshot
    fills_window: bool = False
    away: str | None = None
    notes: Sequence[str] = ()
    devices: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.lines(options.max_width, console.height if self.fills_window else None, glyphs_of(console))

    def lines(self, width: int, height: int | None, glyphs: Glyphs) -> list[Text]:
        """None of them is wider than `width`, and there are no more than `height` if that is given."""
        head = _head(self.snapshot, self.away, width, glyphs)
        room = None if height is None else max(height - len(head), 0)
        lines = [*head, *body(self.snapshot, width, room, glyphs, self.devices, self.notes)][:height]
        for line in lines:
            line.truncate(width)
        return lines


def body(
    snapshot: Snapshot,
    width: int,
    room: int | None,
    glyphs: Glyphs,
    devices: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> list[Text]:
    """A line for each worker, and what went wrong; in `room` lines if that is given."""
    events = [*_events(snapshot), *((note, YELLOW) for note in notes[-2:])]
    most = MOST_EVENTS if room is None else min(MOST_EVENTS, room // 3)
    below = [(words, DIM) for words in packed(devices, width)] + events[max(len(events) - most, 0) :]
    lines = [Text(), *(text_line(words, style, width, glyphs) for words, style in below)] if below else []
    if rows := _rows(snapshot):
        left = None if room is None else max(room - len(lines) - 2, 1)  # an empty line and the headings
        lines = [Text(), *_table(rows, width, left, _scale(snapshot), glyphs), *lines]
    return lines


def _head(snapshot: Snapshot, away: str | None, width: int, glyphs: Glyphs) -> list[Text]:
    clock = f"{datetime.now():%H:%M:%S}"
    name = fit(snapshot.study, max(width - len(clock) - len(GAP), 1), glyphs)
    reasons = [(f"the database is away: {away}", RED)] if away else []
    reasons += [(snapshot.paused, YELLOW)] if snapshot.paused else []
    reasons += [(f"ended: {snapshot.ended}", YELLOW)] if snapshot.ended else []
    if not (snapshot.workers or snapshot.runs or snapshot.is_over):
        reasons.append(("no worker is there yet", DIM))
    return [
        Text.assemble((name, "bold"), GAP, (clock, DIM)),
        _bar(snapshot, width, glyphs),
        text_line(best_in_words(snapshot), "bold" if snapshot.best_trial is not None else DIM, width, glyphs),
        text_line(", ".join(counts_in_words(snapshot)), "", width, glyphs),
        *(line for words, style in reasons for line in wrapped(words, style, width, glyphs)),
    ]


def _bar(snapshot: Snapshot, width: int, glyphs: Glyphs) -> Text:
    words = ", ".join([f"{snapshot.finished}/{snapshot.budget} trials", *_standing(snapshot)])
    length = min(width - len(words) - len(GAP), LONGEST_BAR)
    if length < SHORTEST_SKETCH:
        return text_line(words, "", width, glyphs)
    done = math.floor(length * min(snapshot.finished / snapshot.budget, 1.0))
    return Text.assemble((glyphs.done * done, "green"), (glyphs.to_do * (length - done), DIM), GAP, words)


def _standing(snapshot: Snapshot) -> list[str]:
    if snapshot.finished >= snapshot.budget:
        return ["complete"]
    if snapshot.ended or snapshot.paused:
        return ["ended" if snapshot.ended else "paused"]
    return [] if snapshot.time_left_s is None else [f"{duration(snapshot.time_left_s)} left"]


def _rows(snapshot: Snapshot) -> list[Row]:
    runs = {run.trial: run for run in snapshot.runs}
    there = [worker for worker in snapshot.workers if not _is_left_out(worker, snapshot)]
    rows = [_row(worker, runs.pop(-1 if worker.trial is None else worker.trial, None)) for worker in there]
    return rows + [_row_of_run(run) for run in runs.values()]


def _is_left_out(worker: WorkerRow, snapshot: Snapshot) -> bool:
    """Who has gone matters to nobody in the end; those started by hand would stay in view for a day."""
    return (worker.ended is not None or worker.is_silent) and (snapshot.is_over or worker.seen_s > LONG_GONE_S)


def _row(worker: WorkerRow, run: Run | None) -> Row:
    words, style = state_of(worker), ""
    if worker.ended is not None or worker.is_silent:
        style = YELLOW if worker.ended == Interrupted.exit_code else RED
    elif worker.drain:
        style = YELLOW
    elif run is not None:
        words = f"attempt {run.attempt}" if run.attempt > 1 else ""
    elif worker.trial is None:
        style = DIM
    return Row(worker.host, place_of(worker.slot, worker.device), run, words, style)


def _row_of_run(run: Run) -> Row:
    """Of another program, or of a worker in whose place another works now."""
    if run.worker is None:
        return Row("no worker", "", run, "")
    return Row(run.worker.rpartition(":")[0], "", run, "worker gone", YELLOW)


def _table(
    rows: Sequence[Row], width: int, room: int | None, scale: tuple[float, float], glyphs: Glyphs
) -> Iterator[Text]:
    """With too little room, those with something to tell come first, and the last line says how many are left out."""
    shown = list(rows)
    if room is not None and len(rows) > room:
        shown = sorted(rows, key=lambda row: not row.is_news)[: room - 1]
    widths = _widths(shown, width)
    yield text_line(_joined({name: name for name in widths}, widths, "", glyphs), DIM, width, glyphs)
    for row in shown:
        yield text_line(_row_in_cells(row, widths, scale, glyphs), row.style, width, glyphs)
    if more := len(rows) - len(shown):
        yield text_line(f"and {more} more workers", DIM, width, glyphs)


def _widths(rows: Sequence[Row], width: int) -> dict[str, int]:
    """Of the columns; the sketch takes what the others leave."""
    most, busy = max(width // 6, 6), [row for row in rows if row.run]
    widths = {
        "host": min(max([4, *(cell_len(row.host) for row in rows)]), most),
        "device": min(max([6, *(cell_len(row.place) for row in rows)]), most),
        "trial": min(max([5, *(cell_len(row.trial) for row in busy)]), most),
        "curve": 0,
        "spearman": 8,
        "seen": 5,
    } | ({"time": 6} if width >= WIDE else {})
    words = max([0, *(len(row.words) for row in busy)])
    left = width - sum(widths.values()) - len(widths) * len(GAP) - words
    if left < SHORTEST_SKETCH:
        return {name: cells for name, cells in widths.items() if name != "curve"}
    return widths | {"curve": min(left, LONGEST_SKETCH)}


def _row_in_cells(row: Row, widths: Mapping[str, int], scale: tuple[float, float], glyphs: Glyphs) -> str:
    cells = {"host": row.host, "device": row.place}
    if (run := row.run) is None:
        return _joined(cells, {name: widths[name] for name in cells}, row.words, glyphs)
    cells |= {"trial": row.trial, "curve": sketch(run, widths.get("curve", 0), scale, glyphs)}
    cells |= {"spearman": "", "seen": "", "time": in_short(run.elapsed_s)}
    if run.curve:
        cells["spearman"] = f"{run.curve[-1][1]:.4f}"
        cells["seen"] = f"{100 * min(run.examples / run.planned, 1.0):.0f} %" if run.planned else ""
    return _joined(cells, widths, row.words, glyphs)


def _joined(cells: Mapping[str, str], widths: Mapping[str, int], words: str, glyphs: Glyphs) -> str:
    fitted = [fit(cells[name], cells_wide, glyphs, right=name in AT_RIGHT) for name, cells_wide in widths.items()]
    return GAP.join([*fitted, words]).rstrip()


def _scale(snapshot: Snapshot) -> tuple[float, float]:
    """One for all sketches, up to the best so far."""
    values = [value for run in snapshot.runs for _, value in run.curve]
    best = [] if snapshot.best_spearman is None else [snapshot.best_spearman]
    return min(values, default=0.0), max([*values, *best], default=1.0)


def sketch(run: Run, cells: int, scale: tuple[float, float], glyphs: Glyphs) -> str:
    """Its curve over its whole plan: it is as long as the part that is done. Without a plan, a cell a report."""
    if not run.curve or cells == 0:
        return "starting" if cells >= len("starting") else ""
    steps, values = [step for step, _ in run.curve], [value for _, value in run.curve]
    if run.planned is not None:
        planned = max(run.planned, run.examples)
        done = max(math.ceil(cells * run.examples / planned), 1)
        values = [float(value) for value in np.interp([planned * (i + 1) / cells for i in range(done)], steps, values)]
    return "".join(_level(value, scale, glyphs) for value in values[-cells:])


def _level(value: float, scale: tuple[float, float], glyphs: Glyphs) -> str:
    low, high = scale
    share = (value - low) / (high - low) if high > low else 0.5
    return glyphs.levels[round(share * (len(glyphs.levels) - 1))]


def _events(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """What a person should know of, the newest failures last."""
    if (gone := sum(_is_left_out(worker, snapshot) for worker in snapshot.workers)) and not snapshot.is_over:
        yield f"ended or silent for over an hour: {gone} (hpo workers lists them)", DIM
    if silent := _silent_boxes(snapshot):
        yield f"no word from any worker of {', '.join(silent)}", RED
    for attempt in snapshot.given_back[-2:]:
        again = f"for attempt {attempt.attempt + 1}" if attempt.attempt else "to be taken up again"
        yield f"trial {attempt.trial} was given back by {attempt.worker.rpartition(':')[0]} and waits {again}", YELLOW
    for failure in snapshot.failures[-MOST_FAILURES:]:
        clock = f"{failure.at:%H:%M} " if failure.at else ""
        yield f"{clock}trial {failure.trial} {failure_in_words(failure)}", RED if failure.kind == "failed" else YELLOW


def _silent_boxes(snapshot: Snapshot) -> list[str]:
    """Those with several workers, of whom none was heard."""
    by_host = defaultdict[str, list[bool]](list)
    for worker in snapshot.workers:
        by_host[worker.host].append(worker.is_silent)
    are = {host: all(silent) for host, silent in by_host.items() if len(silent) > 1 and not snapshot.is_over}
    return [host for host, is_silent in are.items() if is_silent]


def failure_in_words(failure: Failure) -> str:
    return f"{'failed' if failure.kind == 'failed' else 'cannot work'}: {failure.reason}"
