"""The live view in a real terminal, while real workers are killed and come back."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from rich.cells import cell_len
from sqlalchemy import URL

from objectives.evaluation import METRICS
from storage import terms
from storage.native import PostgresStorage
from storage.workers import Place, leave, register
from tests.chaos.crew import make_crew
from tests.conftest import TEST_ALL
from tests.postgres.conftest import Query, Start
from tests.stub_trainer import write_stub
from tests.terminal import DEADLINE_S, POLL_S, TMUX, Terminal, open_terminal

Open = Callable[..., Terminal]
Worker = Callable[[int], "subprocess.Popen[str]"]
AT_TIMES = r"\d\d:\d\d (trial \d+ (failed|cannot work):|worker on)"
EVENT = re.compile(rf"({AT_TIMES}|no word from any worker of|trial \d+ was given back by) .*")
FINISHED = "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED', 'FAIL')"
BEST = """SELECT t.number, v.value FROM trials t JOIN trial_values v USING (trial_id)
WHERE t.state = 'COMPLETE' ORDER BY v.value DESC, t.number LIMIT 1"""
HELD = """SELECT t.number FROM trials t JOIN incident_hpo.leases l USING (trial_id)
JOIN incident_hpo.workers w USING (worker) WHERE l.held AND w.slot = %s"""
ATTEMPTS = "SELECT t.number, t.state::text, l.attempts FROM trials t JOIN incident_hpo.leases l USING (trial_id)"
HOST = socket.gethostname()
OF_ANOTHER = """SELECT t.number FROM trials t JOIN incident_hpo.leases l USING (trial_id)
JOIN incident_hpo.workers w USING (worker) WHERE l.held AND w.slot = 'cpu.2' AND w.worker <> %s"""


@dataclass(frozen=True)
class Line:
    """Of a worker: its trial with what stands beside, or its state in words."""

    trial: int | None
    drawn: str
    spearman: str
    seen: str
    words: str


@dataclass(frozen=True)
class Seen:
    """What a person reads."""

    finished: int
    counts: dict[str, int]
    best: str
    workers: dict[str, Line]  # by device
    events: list[str]


def parse(lines: list[str], width: int, budget: int = 1000) -> Seen:
    """Each line is one that belongs there, in its order, and none is wider than the terminal."""
    screen = "\n".join(lines)
    assert max(map(cell_len, lines)) <= width
    assert re.fullmatch(r"\w+ +\d\d:\d\d:\d\d", lines[0]), screen
    assert cell_len(lines[0]) == width
    bar = re.fullmatch(rf"[━─]+  (\d+)/{budget} trials(, .* left|, paused|)", lines[1])
    assert bar, screen
    assert re.fullmatch(r"no best trial yet|best \d\.\d{4} \(trial \d+(, (base|v4))?\)", lines[2]), screen
    counts = {state: int(number) for number, state in re.findall(r"(\d+) (\w+)", lines[3])}
    first = lines.index("", 4) + 1
    last = lines.index("", first)
    workers = dict(_worker(line, lines[first]) for line in lines[first + 1 : last])
    events = [line for line in lines[last:] if line]
    assert all(EVENT.fullmatch(line) for line in events), screen
    return Seen(int(bar[1]), counts, lines[2], workers, events)


def _worker(line: str, heading: str) -> tuple[str, Line]:
    """By its columns, which stand under their headings."""
    device, trial, curve = (heading.index(name) for name in ("device", "trial", "curve"))
    spearman, seen = (heading.index(name) + len(name) for name in ("spearman", "seen"))
    place, rest = line[device:trial].strip(), line[trial:]
    if not rest[:1].isdigit():
        return place, Line(None, "", "", "", rest)
    cells = [line[curve : spearman - 8], line[spearman - 8 : spearman], line[seen - 5 : seen], line[len(heading) :]]
    drawn, value, share, words = (cell.strip() for cell in cells)
    assert re.fullmatch(r"[▁-█]+|starting|", drawn), line
    assert re.fullmatch(r"0\.\d{4}|", value), line
    assert re.fullmatch(r"\d+ %|", share), line
    assert (len(drawn) > 0) == (len(value) > 0) == (len(share) > 0) or drawn == "starting", line
    return place, Line(int(line[trial:curve].split()[0]), drawn, value, share, words)


@pytest.fixture
def terminal(database: URL) -> Iterator[Open]:
    """terminal(command, width, height, **environment); without tmux it is skipped, under HPO_TEST_ALL=1 it fails."""
    if TMUX is None:
        missing = "no tmux: apt-get install tmux"
        pytest.fail(missing) if TEST_ALL else pytest.skip(missing)
    opened = []

    def open_one(command: str, width: int, height: int = 30, **environment: str) -> Terminal:
        environment = {"HPO_STORAGE": database.render_as_string(hide_password=False), "LANG": "C.UTF-8"} | environment
        opened.append(open_terminal(command, width, height, **environment))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """Trials of eight seconds, all metrics equal to Spearman."""
    environment = write_stub(tmp_path / "stub", steps=40, step_s=0.2)
    script = tmp_path / "stub" / "sitecustomize.py"
    scores, end = '{"spearman": step / 40 / 2}', "stop_epoch=1.0"
    text = script.read_text()
    assert text.count(scores) == text.count(end) == 1
    about = "untrained=scores, ceilings=scores, intervals={name: [0, 1] for name in scores}, best_epoch=1.0"
    script.write_text(text.replace(scores, f"dict.fromkeys({METRICS}, step / 80)").replace(end, f"{end}, {about}"))
    return environment


@pytest.fixture
def work(database: URL, tmp_path: Path, start: Start, stub: dict[str, str]) -> Iterator[Worker]:
    """work(gpu): a worker in that place, of a study of a thousand trials with a lease of three seconds."""
    make_crew(database, tmp_path, trials=1000, lease_s=3.0)
    started = []

    def begin(gpu: int) -> subprocess.Popen[str]:
        places = {"HPO_SLOT": f"gpu {gpu}", "CUDA_VISIBLE_DEVICES": str(gpu)}
        started.append(start(database, "-m", "hpo", "worker", "study", **stub, **places))
        return started[-1]

    yield begin
    for process in started:
        process.terminate()
    for process in started:
        process.wait(DEADLINE_S)


def command(*arguments: str | Path) -> str:
    return shlex.join([sys.executable, "-m", "hpo", *map(str, arguments)])


def until(views: list[Terminal], holds: Callable[[Seen], bool], budget: int = 1000) -> list[Seen]:
    """Reads the views until that holds of all of them; each screen on the way must be whole, and no count falls."""
    give_up, before = time.monotonic() + DEADLINE_S, [0] * len(views)
    while True:
        screens = [view.screen() for view in views]
        found = [parse(lines, view.width, budget) for lines, view in zip(screens, views, strict=True)]
        assert all(seen.finished >= earlier for seen, earlier in zip(found, before, strict=True))
        if all(map(holds, found)):
            return found
        assert time.monotonic() < give_up, "\n".join(screens[0])
        before = [seen.finished for seen in found]
        time.sleep(POLL_S)


def are_at_work(*places: str) -> Callable[[Seen], bool]:
    return lambda seen: {place for place, line in seen.workers.items() if line.spearman and not line.words} == {*places}


def has_begun(lines: list[str]) -> bool:
    return any(re.search(r"0\.\d{4} +\d+ %", line) for line in lines)


def is_as_wide(width: int, lines: list[str]) -> bool:
    return cell_len(lines[0]) == width


def test_view_keeps_its_form_and_tells_the_truth_while_a_worker_is_killed_and_comes_back(
    database: URL, terminal: Open, work: Worker, query: Query
) -> None:
    workers = [work(gpu) for gpu in range(3)]
    views = [terminal(command("status", "study", "--watch"), width) for width in (80, 200)]
    for view in views:
        view.until(has_begun)
    until(views, are_at_work("gpu 0", "gpu 1", "gpu 2"))
    workers[1].kill()
    (lost,) = query(database, HELD, "gpu 1")[0]
    until(views, lambda seen: seen.workers["gpu 1"].words.startswith("silent for "))
    until(views, lambda seen: f"trial {lost} was given back by {HOST} and waits for attempt 2" in seen.events)
    work(1)
    until(views, lambda seen: any(line.words == "attempt 2" for line in seen.workers.values()))
    until(views, lambda seen: seen.workers["gpu 1"].spearman != "")
    storage = PostgresStorage(database)
    terms.pause(storage.ask, storage.get_study_id_from_name("study"))
    found = until(views, lambda seen: seen.counts["running"] == 0)
    (finished,), (number, value) = query(database, FINISHED)[0], query(database, BEST)[0]
    for seen in found:
        assert (seen.finished, seen.counts["complete"], seen.counts["waiting"]) == (finished, finished, 0)
        assert re.sub(", base", "", seen.best) == f"best {value:.4f} (trial {number})"
        assert {line.words for line in seen.workers.values()} == {"idle"}
    assert (lost, "COMPLETE", 2) in query(database, ATTEMPTS)


def test_ctrl_c_leaves_the_terminal_clean_with_the_last_view_and_exit_code_0(terminal: Open, work: Worker) -> None:
    work(0)
    view = terminal(command("status", "study", "--watch"), 80)
    view.until(has_begun)
    assert not view.is_clean()
    view.press("C-c")
    lines = view.until(lambda lines: "exit code 0" in lines)
    assert view.is_clean()
    assert parse([*lines[: lines.index("exit code 0")], ""], 80).workers["gpu 0"].trial == 0


def test_worker_killed_under_a_run_is_back_in_its_line_within_seconds(
    database: URL, terminal: Open, study_yaml: Path, stub: dict[str, str], tmp_path: Path, query: Query
) -> None:
    run = command("run", study_yaml, "--workers", "2", "-o", tmp_path / "out")
    view = terminal(run, 80, CUDA_VISIBLE_DEVICES="", **stub)
    view.until(has_begun)
    until([view], are_at_work("cpu", "cpu.2"), budget=3)
    (worker,) = query(database, "SELECT worker FROM incident_hpo.workers WHERE slot = 'cpu.2'")[0]
    psutil.Process(int(str(worker).rpartition(":")[2])).kill()
    killed = "worker on cpu.2 was killed by signal 9; again in 1 s"
    until([view], lambda seen: killed in [event[6:] for event in seen.events], budget=3)

    def is_back(seen: Seen) -> bool:
        return (seen.workers["cpu.2"].trial,) in query(database, OF_ANOTHER, worker)

    until([view], is_back, budget=3)
    view.press("C-c")
    lines = view.until(lambda lines: "exit code 75" in lines)
    assert view.is_clean()
    assert f"hpo: {killed}" in lines
    assert lines[lines.index("exit code 75") - 1].endswith("Run the same command to go on")


def test_window_that_changes_its_size_shows_the_whole_view_and_nothing_of_the_old(terminal: Open, work: Worker) -> None:
    work(0)
    view = terminal(command("status", "study", "--watch"), 120)
    view.until(has_begun)
    for width, height in ((60, 12), (200, 50), (80, 24)):
        view.resize(width, height)
        lines = view.until(partial(is_as_wide, width))
        assert len(lines) == height
        assert parse(lines, width).workers.keys() == {"gpu 0"}


def test_view_says_that_the_database_is_away_and_goes_on_when_it_is_back(
    database: URL, server_url: URL, terminal: Open, work: Worker, query: Query
) -> None:
    work(0)
    view = terminal(command("status", "study", "--watch"), 80)
    view.until(has_begun)
    query(server_url, f"ALTER DATABASE {database.database} ALLOW_CONNECTIONS false")
    query(server_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", database.database)
    lines = view.until(lambda lines: lines[4].startswith("the database is away: PostgreSQL at "))
    assert parse(lines, 80).workers["gpu 0"].trial == 0
    query(server_url, f"ALTER DATABASE {database.database} ALLOW_CONNECTIONS true")
    until([view], lambda seen: seen.finished >= 1)


def test_window_too_low_for_all_workers_says_how_many_more_there_are(
    database: URL, tmp_path: Path, terminal: Open
) -> None:
    make_crew(database, tmp_path, trials=1000, lease_s=300.0)
    storage = PostgresStorage(database)
    study_id = storage.get_study_id_from_name("study")
    for number in range(64):
        register(storage.ask, f"box:{number}", study_id, Place("box", f"gpu {number}", f"gpu {number}", None))
    leave(storage.ask, "box:63", 78)
    view = terminal(command("status", "study", "--watch"), 80, 24)
    lines = view.until(lambda lines: any(line.startswith("box") for line in lines))
    workers = [line for line in lines if line.startswith("box")]
    assert workers[0].endswith("ended: broken set-up (78)")
    assert lines[-1] == f"and {64 - len(workers)} more workers"


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_terminal_without_colours_gets_none(terminal: Open, work: Worker, variable: dict[str, str]) -> None:
    work(0)
    view = terminal(command("status", "study", "--watch"), 80, **variable)
    lines = view.until(lambda lines: any("0/1000 trials" in line for line in lines))
    assert not re.search(r"\x1b\[[\d;]*3[0-7]", view.colours())
    assert view.is_clean() == ("TERM" in variable)  # a dumb one gets lines
    assert max(map(cell_len, lines)) <= 80
