"""The live view is right in a terminal of any size: no line is too wide, none too many, every column in its place."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from hpo.cells import ASCII, BLOCKS, Glyphs
from hpo.live_view import Frame, sketch
from hpo.status import Failure, Run, Snapshot
from hpo.worker_view import in_short, state_of
from storage.attempts import Attempt
from storage.workers import WorkerRow

LEASE_S = 30.0
COUNTS = {"complete": 18, "pruned": 12, "failed": 2, "running": 5, "waiting": 1}
WIDE_NAME = "日本語の名前"
EVIL = "KeyError: \x1b[2J\x1b[31m\r\n\ttab \x07" + "long " * 80


def worker(
    host: str = "box",
    slot: str = "gpu 0",
    trial: int | None = None,
    *,
    seen_s: float = 1.0,
    drain: bool = False,
    ended: int | None = None,
) -> WorkerRow:
    return WorkerRow(
        "s", f"{host}:{slot}", host, slot, slot.partition(".")[0], trial, seen_s, LEASE_S, drain, ended, 3, 0, 1
    )


def run(
    number: int,
    reports: int = 5,
    planned: int | None = 20_000,
    baseline: str | None = None,
    attempt: int = 1,
    worker: str | None = "box:1",
) -> Run:
    curve = tuple((step * 1000, 0.2 + 0.4 * (1 - 0.8**step)) for step in range(1, reports + 1))
    return Run(number, baseline, worker, attempt, planned, curve, 100.0 * number)


FAILURES = (
    Failure(3, "failed", EVIL, "box:1", datetime(2026, 1, 2, 3, 4)),
    Failure(7, "infeasible", "out of memory: CUDA out of memory", "box:1", datetime(2026, 1, 2, 3, 5)),
)
BLANK = Snapshot("servicedesk", 100, dict.fromkeys(COUNTS, 0), None, None, None, (), None, None)
BASE = Snapshot("servicedesk", 100, COUNTS, 23, 0.612, 4000.0, (), None, None, "hand_set")
MIXED = replace(
    BASE,
    workers=(
        worker("gpu-a", "gpu 0", 41),
        worker("gpu-a", "gpu 1", 42, drain=True),
        worker("gpu-a", "gpu 2"),
        worker("gpu-b", "gpu 0", 43, seen_s=130.0),
        worker("gpu-b", "gpu 0.2", seen_s=170.0),
        worker("gpu-c", "gpu 0", ended=78),
        worker("gpu-c.example.internal", "gpu 2", 44),
    ),
    runs=(
        run(41, 5, baseline=WIDE_NAME),
        run(42, 19),
        run(43, 2, attempt=2),
        run(44, 0),
        run(45, 3, None, worker=None),
        run(46, 12, worker="gpu-z:12"),
    ),
    failures=FAILURES,
    given_back=(Attempt(12, "WAITING", "gpu-b:7", 1), Attempt(13, "WAITING", "gpu-b:8", 0)),
)
MANY = replace(
    BASE,
    workers=tuple(
        worker(f"box-{host}", f"gpu {gpu}", host * 8 + gpu, ended=78 if (host, gpu) == (7, 7) else None)
        for host in range(8)
        for gpu in range(8)
    ),
    runs=tuple(run(number, number % 20 + 1) for number in range(64)),
    failures=FAILURES,
)
PAUSED = "study s is paused: 3 trials on 2 boxes failed of KeyError in step (x.py:48). Mend it, then: hpo study resume"
SCENES = {
    "blank": BLANK,
    "mixed": MIXED,
    "many": MANY,
    "paused": replace(MIXED, paused=PAUSED),
    "ended": replace(BLANK, ended="its 2 hours are over"),
    "wide name": replace(MIXED, study=WIDE_NAME * 20),
}


def shown(
    snapshot: Snapshot, width: int = 80, height: int | None = 30, glyphs: Glyphs = BLOCKS, away: str | None = None
) -> list[str]:
    return [line.plain for line in Frame(snapshot, away=away).lines(width, height, glyphs)]


def painted(snapshot: Snapshot, width: int, height: int, **options: Any) -> str:
    """What a terminal is sent for one view."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=height, markup=False, **options)
    console.print(Frame(snapshot))
    return file.getvalue()


@pytest.mark.parametrize("scene", SCENES)
def test_no_line_is_wider_and_none_more_than_the_terminal_of_any_size(scene: str) -> None:
    for width in (*range(10, 120, 3), 200, 300):
        for height in (*range(1, 12), 24, 30, 60):
            lines = shown(SCENES[scene], width, height, away=EVIL)
            assert len(lines) <= height
            assert max(map(cell_len, lines)) <= width, (width, height, lines)
            assert all(letter.isprintable() for line in lines for letter in line)


@pytest.mark.parametrize("scene", SCENES)
def test_printed_view_has_a_line_for_each_of_its_lines(scene: str) -> None:
    """Nothing is wrapped on its way to the terminal."""
    for width in (20, 40, 80, 200):
        lines = painted(SCENES[scene], width, 30, no_color=True, color_system=None).splitlines()
        assert [line.rstrip() for line in lines[1:]] == shown(SCENES[scene], width, None)[1:]  # the first has a clock


def test_head_says_how_far_it_is_the_best_and_the_counts() -> None:
    name, bar, best, counts, *_ = shown(BASE)
    assert name.startswith("servicedesk  ")
    assert bar.endswith("  32/100 trials, 1 h 06 min left")
    assert bar.count("━") == pytest.approx(0.32 * (bar.count("━") + bar.count("─")), abs=1)
    assert best == "best 0.6120 (trial 23, hand_set)"
    assert counts == "18 complete, 12 pruned, 2 failed, 5 running, 1 waiting"


def test_each_worker_has_a_line_with_its_trial_or_its_state_in_words() -> None:
    """So has each trial that runs without one."""
    lines = [" ".join(line.split()) for line in shown(MIXED, 200) if line.startswith(("gpu-", "no worker"))]
    without_sketch = [re.sub(f" [{BLOCKS.levels}]+", "", line) for line in lines]
    assert without_sketch == [
        f"gpu-a gpu 0 41 {WIDE_NAME} 0.4689 25 % 1 h",
        "gpu-a gpu 1 42 0.5942 95 % 1 h leaving",
        "gpu-a gpu 2 idle",
        "gpu-b gpu 0 43 0.3440 10 % 1 h silent for 2 min",
        "gpu-b gpu 0.2 silent for 2 min",
        "gpu-c gpu 0 ended: broken set-up (78)",
        "gpu-c.example.internal gpu 2 44 starting 1 h",
        "no worker 45 0.3952 1 h",
        "gpu-z 46 0.5725 60 % 1 h worker gone",
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_columns_stand_under_their_headings_beside_wide_characters(width: int) -> None:
    lines = shown(MIXED, width)
    end = re.search("spearman", next(line for line in lines if line.startswith("host")))
    ends = {cell_len(line[: found.end()]) for line in lines[5:] if (found := re.search(r"0\.\d{4}", line))}
    assert end is not None
    assert ends == {end.end()}


def test_with_too_little_room_those_with_something_to_tell_come_first() -> None:
    lines = shown(MANY, 80, 24)
    rows = [line for line in lines if line.startswith("box-")]
    assert "ended: broken set-up (78)" in rows[0]
    assert len(rows) + int(next(line for line in lines if line.startswith("and ")).split()[1]) == 64
    assert len(lines) == 24
    assert len([line for line in shown(MANY, 80, None) if line.startswith("box-")]) == 64


def test_what_went_wrong_is_said_in_words_the_newest_last_and_cut_at_the_width() -> None:
    lines = shown(MIXED, 80, None)[-5:]
    assert lines[0] == "no word from any worker of gpu-b"
    assert lines[1] == "trial 12 was given back by gpu-b and waits for attempt 2"
    assert lines[2] == "trial 13 was given back by gpu-b and waits to be taken up again"
    assert lines[3].startswith("03:04 trial 3 failed: KeyError: ")
    assert lines[3].endswith("…")
    assert lines[4] == "03:05 trial 7 cannot work: out of memory: CUDA out of memory"


def test_workers_gone_for_more_than_an_hour_are_only_counted() -> None:
    lines = shown(
        replace(BASE, workers=(worker("a", ended=75, seen_s=4000.0), worker("b", seen_s=9999.0), worker("c")))
    )
    assert [line.split()[0] for line in lines if "gpu 0" in line] == ["c"]
    assert lines[-1] == "ended or silent for over an hour: 2 (hpo workers lists them)"


def test_workers_that_have_gone_are_not_shown_when_the_study_is_over() -> None:
    over = replace(MIXED, ended="its 2 hours are over", runs=MIXED.runs[:1])
    places = [line.split()[:3:2] for line in shown(over, 200) if line.startswith(("gpu-", "no worker"))]
    assert places == [["gpu-a", "0"], ["gpu-a", "1"], ["gpu-a", "2"], ["gpu-c.example.internal", "2"]]


def test_a_pause_is_told_whole_in_as_many_lines_as_it_needs() -> None:
    assert PAUSED in " ".join(line.rstrip() for line in shown(SCENES["paused"]))
    assert "32/100 trials, paused" in shown(SCENES["paused"])[1]


def test_sketch_is_as_long_as_the_part_of_the_plan_that_is_done() -> None:
    scale = (0.2, 0.6)
    assert [len(sketch(run(1, reports), 20, scale, BLOCKS)) for reports in (1, 5, 10, 20)] == [1, 5, 10, 20]
    drawn = sketch(run(1, 20), 20, scale, BLOCKS)
    assert list(drawn) == sorted(drawn)
    assert (drawn[0], drawn[-1]) == ("▂", "█")
    assert len(sketch(run(1, 30, planned=None), 20, scale, BLOCKS)) == 20
    assert sketch(run(1, 0), 20, scale, BLOCKS) == "starting"


def test_terminal_that_cannot_show_blocks_gets_ascii() -> None:
    lines = shown(replace(MIXED, runs=MIXED.runs[1:]), glyphs=ASCII)
    assert all(line.isascii() for line in lines)
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, force_terminal=True, width=80).print(Frame(replace(MIXED, runs=MIXED.runs[1:])))


def test_without_colour_the_same_words_are_sent() -> None:
    coloured, plain = painted(MIXED, 80, 30, color_system="standard"), painted(MIXED, 80, 30, no_color=True)
    assert "\x1b[31m" in coloured
    assert "\x1b[31m" not in plain
    assert "silent for 2 min" in plain


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (worker(trial=17), "trial 17"),
        (worker(), "idle"),
        (worker(trial=17, drain=True), "leaving"),
        (worker(trial=17, seen_s=140.0), "silent for 2 min"),
        (worker(drain=True, seen_s=8000.0), "silent for 2 h"),
        (worker(ended=78, seen_s=8000.0), "ended: broken set-up (78)"),
        (worker(ended=1), "ended: failed (1)"),
        (worker(ended=2), "ended: bad input (2)"),
        (worker(ended=70), "ended: crashed (70)"),
        (worker(ended=75), "interrupted (75)"),
        (worker(ended=-9), "killed or crashed (-9)"),
        (worker(ended=0), "has left"),
    ],
    ids=lambda found: found if isinstance(found, str) else "",
)
def test_state_of_a_worker_is_a_few_plain_words(row: WorkerRow, words: str) -> None:
    assert state_of(row) == words
    assert len(words) <= 25


def test_short_durations_have_one_unit() -> None:
    assert [in_short(seconds) for seconds in (0.4, 59.9, 60, 3599, 3600, 90_000)] == [
        "0 s",
        "59 s",
        "1 min",
        "59 min",
        "1 h",
        "25 h",
    ]
