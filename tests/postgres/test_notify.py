"""What a webhook is told: by real workers, each event once, whatever the receiver does. Its URL is in no other place.

Their trainer is a process as real, of few lines: what a trial is worth follows from its learning rate alone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState, create_trial
from sqlalchemy import URL

from hpo.config import CONFIRM, StudyFile
from hpo.ending import extend, pause, resume
from hpo.errors import InputError
from hpo.notify import TIMEOUT_S, Notifier, news, webhook_url
from hpo.study import create_study, open_study, ours
from hpo.study_file import read_study_file
from hpo.worker import NEWS_S
from storage.native import PostgresStorage
from tests.recorded import CURVES, make_recorded_study, recorded_trial

Query = Callable[..., list[tuple[Any, ...]]]
Start = Callable[..., subprocess.Popen[str]]

REPOSITORY = Path(__file__).parents[2]
SECRET = "T0-canary-B0"  # the part of the URL that is as good as a password
PATIENCE_S = 120
TRAINER = """import json, os, sys, time
if "objectives.trainer" in sys.orig_argv:
    for line in filter(lambda line: line.startswith("{{"), sys.stdin):
        config = json.loads(line)["config"]
        while config["seed"] in {gated} and not os.path.exists({gate!r}):
            time.sleep(0.02)
        scores = dict.fromkeys(("spearman", "spearman_binary", "roc_auc", "pr_auc", "f1"), 0.3)
        scores["spearman"] += config["training"]["learning_rate"]
        for message in (dict(event="started", planned=1, examples=0, curve=[]),
                        dict(event="result", scores=scores, stop_reason="completed", stop_epoch=1.0)):
            print(json.dumps(message), flush=True)
    os._exit(0)
"""
HASTE = "import hpo.notify; hpo.notify.RETRY_S = 1.0\n"
DEATH = "import hpo.notify, signal; hpo.notify._post = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
STUDY = """name: small
incidents: {{path: {incidents}}}
pairs: {{held_out: 1000}}
mining: {{train_pairs: 400}}
space:
  parameters:
    learning_rate: {{type: float, low: 1e-3, high: 0.1, log: true}}
  baselines:
    v4: {{learning_rate: 1e-5}}
sampler: random
budget: {{trials: {trials}}}
lease_s: 3
"""
BUG = "/a/training.py:9 <lambda>\nKeyError"


@dataclass
class Receiver:
    """Answers with each of `statuses` once, then with 200; what came with 200 is told."""

    statuses: list[int] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/{SECRET}"

    def take(self, request: BaseHTTPRequestHandler) -> None:
        content = request.rfile.read(int(request.headers["Content-Length"]))
        with self.came:
            self.paths.append(request.path)
            status = self.statuses.pop(0) if self.statuses else 200
            if status == 200 and request.headers["Content-Type"] == "application/json":
                message = json.loads(content)
                assert message.keys() == {"text"}
                self.told.append(message["text"])
            self.came.notify_all()
        request.send_response(status)
        request.send_header("Location", "/elsewhere")  # read where the status is a redirect
        request.send_header("Content-Length", "0")
        request.end_headers()

    def wait_for(self, words: str) -> None:
        with self.came:
            assert self.came.wait_for(lambda: any(words in text for text in self.told), PATIENCE_S), self.told


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.take(self)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.port = server.server_port
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        yield found
        server.shutdown()


@dataclass
class Box:
    """A study, and real workers on it whose trainers wait at trials that are gated until the gate opens."""

    url: URL
    folder: Path
    study: optuna.Study
    start: Start

    def worker(self, webhook: str | None, *, gated: tuple[int, ...] = (), patch: str = "", **environment: str) -> Any:
        folder = self.folder / f"patch-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(TRAINER.format(gated=gated, gate=str(self.gate)) + patch)
        environment |= {"HPO_WEBHOOK": webhook} if webhook else {}
        path = f"{folder}{os.pathsep}{REPOSITORY}"
        return self.start(self.url, "-m", "hpo", "worker", "small", PYTHONPATH=path, **environment)

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def wait_for_running(self, *numbers: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not {t.number for t in self.study.get_trials(states=(TrialState.RUNNING,))}.issuperset(numbers):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def best(self) -> str:
        return f"trial {self.study.best_trial.number} is the new best"


@pytest.fixture
def make_box(database: URL, tmp_path: Path, incidents_csv: Path, start: Start) -> Callable[[int], Box]:
    def make(trials: int) -> Box:
        path = tmp_path / "study.yaml"
        path.write_text(STUDY.format(incidents=incidents_csv, trials=trials))
        study = create_study(database, PostgresStorage(database), read_study_file(path))
        (tmp_path / "box").mkdir()
        return Box(database, tmp_path / "box", study, start)

    return make


def ended(worker: subprocess.Popen[str]) -> tuple[int, str]:
    log = worker.communicate(timeout=PATIENCE_S)[0]
    return worker.returncode, log


# Each event once


def test_eight_workers_tell_each_event_once(make_box: Callable[[int], Box], receiver: Receiver) -> None:
    box = make_box(40)
    workers = [box.worker(receiver.url, gated=tuple(range(8))) for _ in range(8)]
    box.wait_for_running(*range(8))
    pause(box.study)
    box.gate.touch()
    receiver.wait_for("study small was paused by hand; let it go on: hpo study resume small")
    resume(box.study)
    assert [ended(worker)[0] for worker in workers] == [0] * 8
    assert len(set(receiver.told)) == len(receiver.told)
    first = [text.split()[2:4] for text in receiver.told]
    assert first.count(["was", "paused"]) == first.count(["has", "ended,"]) == 1
    assert len([text for text in receiver.told if box.best() in text]) == 1
    assert "40 trials (40 complete, 0 pruned, 0 failed)" in receiver.told[-1] + receiver.told[-2]


def test_worker_killed_between_claim_and_send_leaves_the_event_to_another_after_the_retry_time(
    make_box: Callable[[int], Box], receiver: Receiver, query: Query
) -> None:
    box = make_box(2)
    assert ended(box.worker(receiver.url, patch=DEATH))[0] == -9
    assert receiver.paths == []
    assert query(box.url, "SELECT event, sent FROM incident_hpo.notices") == [("best 1", None)]
    assert ended(box.worker(receiver.url))[0] == 0  # a minute has not passed
    assert [text.split()[2:4] for text in receiver.told] == [["has", "ended,"]]
    assert ended(box.worker(receiver.url, patch=HASTE))[0] == 0
    assert [box.best() in text for text in receiver.told] == [False, True]
    assert ended(box.worker(receiver.url, patch=HASTE))[0] == 0
    assert len(receiver.told) == 2


@pytest.mark.parametrize("statuses", [[500], [500] * 2, [302] * 2, [429] * 2], ids=str)
def test_event_that_was_refused_is_told_again(
    make_box: Callable[[int], Box], receiver: Receiver, statuses: list[int]
) -> None:
    box, receiver.statuses = make_box(3), list(statuses)
    worker = box.worker(receiver.url, gated=(2,), patch=HASTE)
    receiver.wait_for("trial 1 is the new best")
    box.gate.touch()
    code, log = ended(worker)
    assert code == 0
    assert len(receiver.told) == len(set(receiver.told)) >= 2
    assert set(receiver.paths) == {f"/services/{SECRET}"}  # a redirect is not followed
    assert log.count("the webhook was not told") == (len(statuses) > 1)


def test_bug_that_pauses_a_study_is_told_with_its_kind_and_place(
    make_box: Callable[[int], Box], receiver: Receiver, tmp_path: Path
) -> None:
    box = make_box(9)
    for number, name in enumerate(("one", "one", "two")):
        attributes = {"trace": BUG, "worker": f"{name}:{number}"}
        box.study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attributes))
    (tmp_path / "webhook").write_text(f"{receiver.url}\n")
    code, log = ended(box.worker(None, HPO_WEBHOOK_FILE=str(tmp_path / "webhook")))
    assert code == 1, log
    (text,) = receiver.told
    assert text.startswith(
        "study small is paused: 3 trials on 2 boxes failed of KeyError in &lt;lambda&gt; (training.py:9)"
    )


def test_worker_that_comes_late_tells_how_things_stand_now(make_box: Callable[[int], Box], receiver: Receiver) -> None:
    box = make_box(9)
    assert ended(box.worker(None))[0] == 0
    assert ended(box.worker(receiver.url))[0] == 0
    assert [box.best() in text for text in receiver.told] == [True, False]
    assert receiver.told[1].startswith(
        "study small has ended, as its budget of trials is used up: 9 trials (9 complete"
    )


# Receivers that do not do their part


def silent() -> Iterator[int]:
    """Lets in, and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refusing() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


def slow() -> Iterator[int]:
    """Answers with a byte a second, so that no wait for the next one is long."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError), server.accept()[0] as connection:
                for byte in b"HTTP/1.1 200 " + b"O" * 1000:
                    connection.sendall(bytes([byte]))
                    time.sleep(1)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture(params=[silent, refusing, slow])
def bad_port(request: pytest.FixtureRequest) -> Iterator[int]:
    yield from request.param()


def test_bad_receiver_neither_delays_nor_fails_a_trial(make_box: Callable[[int], Box], bad_port: int) -> None:
    box = make_box(6)
    code, log = ended(box.worker(f"http://127.0.0.1:{bad_port}/services/{SECRET}"))
    now = datetime.now()
    assert code == 0, log
    trials = box.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    begun = min(trial.datetime_start for trial in trials[2:] if trial.datetime_start)
    done = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
    assert (done - begun).total_seconds() < TIMEOUT_S  # the first news came before
    assert (now - done).total_seconds() < NEWS_S + 4
    assert log.count("the webhook was not told") <= 1
    assert SECRET not in log


def test_worker_that_is_stopped_waits_for_no_receiver(make_box: Callable[[int], Box]) -> None:
    box = make_box(9)
    with socket.create_server(("127.0.0.1", 0)) as server:
        worker = box.worker(f"http://127.0.0.1:{server.getsockname()[1]}/", gated=(2,))
        with server.accept()[0]:  # the news of trial 1
            box.wait_for_running(2)
            started = time.monotonic()
            worker.terminate()
            assert ended(worker)[0] == 75
            assert time.monotonic() - started < NEWS_S


# The URL is a secret


def test_url_is_in_no_log_row_argument_or_trainer(make_box: Callable[[int], Box], query: Query) -> None:
    box = make_box(3)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    worker = box.worker(f"http://127.0.0.1:{port}/services/{SECRET}", gated=(2,))
    box.wait_for_running(2)
    process = psutil.Process(worker.pid)
    assert SECRET in process.environ()["HPO_WEBHOOK"]
    (trainer,) = [child for child in process.children() if "objectives.trainer" in child.cmdline()]
    assert not [name for name, value in trainer.environ().items() if SECRET in value or name.startswith("HPO_")]
    assert not [one for one in (process, trainer) if SECRET in " ".join(one.cmdline())]
    box.gate.touch()
    code, log = ended(worker)
    assert code == 0
    assert "the webhook was not told (ConnectionRefusedError)" in log
    assert SECRET not in log
    dumped = [row for table in tables(query, box.url) for row in query(box.url, f"SELECT t::text FROM {table} t")]
    assert len(dumped) > 20
    assert not [row for row in dumped if SECRET in str(row)]


def tables(query: Query, url: URL) -> list[str]:
    found = query(url, "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'incident_hpo')")
    assert ("incident_hpo", "notices") in found
    return [f"{schema}.{table}" for schema, table in found]


def test_worker_with_a_wrong_url_ends_with_a_sentence_that_does_not_show_it(database: URL, start: Start) -> None:
    code, log = ended(start(database, "-m", "hpo", "worker", "any", HPO_WEBHOOK=f"hooks.example/{SECRET}"))
    assert code == 2
    assert log == (
        "hpo: HPO_WEBHOOK: expected a URL as https://HOST/PATH, without a user; it is not shown, as a secret\n"
    )


@pytest.mark.parametrize(
    "url",
    [
        f"ftp://hooks.example/{SECRET}",
        f"https:///{SECRET}",
        f"https://me:{SECRET}@hooks.example/",
        f"https://hooks.example/{SECRET} and more",
        f"https://hooks.example/{SECRET}\nHost: other",
        f"https://hooks.example:{SECRET}/",
        f"https://hööks.example/{SECRET}",
        SECRET,
    ],
)
@pytest.mark.parametrize("is_in_a_file", [False, True])
def test_wrong_url_is_refused_and_not_shown(
    url: str, is_in_a_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "webhook").write_text(url)
    monkeypatch.setenv(*("HPO_WEBHOOK_FILE", str(tmp_path / "webhook")) if is_in_a_file else ("HPO_WEBHOOK", url))
    with pytest.raises(InputError, match=r"^HPO_WEBHOOK(_FILE)?: expected a URL as https://HOST/PATH") as refused:
        webhook_url()
    assert SECRET not in str(refused.value)
    assert ("_FILE:" in str(refused.value)) == is_in_a_file


@pytest.mark.parametrize("path", [f"https://hooks.example/{SECRET}", "/", "empty"])
def test_file_that_holds_no_url_is_refused_and_not_shown(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_WEBHOOK_FILE", path)
    with pytest.raises(InputError, match=r"^HPO_WEBHOOK_FILE") as refused:
        webhook_url()
    assert SECRET not in str(refused.value)


def test_without_a_webhook_there_is_no_thread(database: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_WEBHOOK", "")
    notifier = Notifier(database, "any")
    notifier.start()
    assert not [thread for thread in threading.enumerate() if thread.name == "notifier"]
    notifier.stop(0.0)


# What is told


@pytest.fixture
def recorded(database: URL) -> tuple[optuna.Study, StudyFile]:
    """Ended, and its best is trial 35."""
    return make_recorded_study(database)


def test_new_best_is_told_with_its_gains(recorded: tuple[optuna.Study, StudyFile]) -> None:
    assert next(news(*recorded)) == (
        "best 35",
        "study servicedesk: trial 35 is the new best, spearman 0.5888 (+0.0012 against trial 22, the best before; "
        "+0.0611 against hand_set, the best baseline)",
    )


def test_end_is_told_with_why_the_best_and_the_outcomes(recorded: tuple[optuna.Study, StudyFile]) -> None:
    assert list(news(*recorded))[1:] == [
        (
            "ended after 40 trials",
            "study servicedesk has ended, as its budget of trials is used up: 40 trials (37 complete, 2 pruned, "
            "1 failed); the best is trial 35, spearman 0.5888",
        )
    ]


def test_study_that_ends_again_after_it_was_extended_is_told_again(recorded: tuple[optuna.Study, StudyFile]) -> None:
    study, file = recorded
    extend(study, file, trials=1, hours=0, gpu_hours=0)
    assert [event for event, _ in news(study, file)] == ["best 35"]
    ours(study).create_new_trial(study._study_id, recorded_trial(CURVES[2]))
    assert [event for event, _ in news(study, file)] == ["best 35", "ended after 41 trials"]


def test_end_is_not_told_while_a_trial_runs(recorded: tuple[optuna.Study, StudyFile]) -> None:
    study, file = recorded
    running = study.ask()
    assert [event for event, _ in news(study, file)] == ["best 35"]
    study.tell(running, state=TrialState.FAIL)
    assert [event for event, _ in news(study, file)] == ["best 35", "ended after 41 trials"]


def test_baseline_that_is_best_is_no_news(recorded: tuple[optuna.Study, StudyFile]) -> None:
    study, file = recorded
    best = max(CURVES, key=lambda row: row["metrics"]["spearman"])
    metrics = {name: value + 0.05 for name, value in best["metrics"].items()}
    ours(study).create_new_trial(study._study_id, recorded_trial(best | {"baseline": "ours", "metrics": metrics}))
    assert [event for event, _ in news(study, file)] == ["ended after 41 trials"]


def test_each_pause_is_an_event_of_its_own(recorded: tuple[optuna.Study, StudyFile]) -> None:
    study, file = recorded
    file = extend(study, file, trials=1, hours=0, gpu_hours=0)
    pauses = set[str]()
    for _ in range(2):
        pause(study)
        pauses |= {event for event, _ in news(study, file) if event.startswith("paused at")}
        assert len(list(news(study, file))) == 2
        resume(study)
    assert len(pauses) == 2


def test_confirmation_has_no_new_best(database: URL) -> None:
    """There one configuration runs again and again."""
    study, _ = make_recorded_study(database, "servicedesk")
    query = "UPDATE public.studies SET study_name = %s WHERE study_id = %s"
    ours(study).ask(query, (f"servicedesk{CONFIRM}", study._study_id))
    file = open_study(PostgresStorage(database), f"servicedesk{CONFIRM}")[1]
    told = list(news(study, file.model_copy(update={"name": f"servicedesk{CONFIRM}"})))
    assert told == [
        (
            "ended after 40 trials",
            f"study servicedesk{CONFIRM} has ended, as its budget of trials is used up: 40 trials (37 complete, "
            "2 pruned, 1 failed)",
        )
    ]
