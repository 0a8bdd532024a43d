"""`hpo dashboard` as a browser sees it: served to this machine only, and nothing can be changed through it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import psutil
import pytest
from sqlalchemy import URL

from hpo.study import create_study
from hpo.study_file import read_study_file
from storage.native import PostgresStorage

if TYPE_CHECKING:
    from playwright.sync_api import Page

REPOSITORY = Path(__file__).parents[2]
STUDY = """name: small
incidents: {{path: {incidents}}}
space:
  parameters:
    learning_rate: {{type: float, low: 1e-3, high: 0.1, log: true}}
    epochs: {{type: int, low: 1, high: 2}}
budget: {{trials: 3}}
"""
VALUES = {0: 0.125, 1: 0.375, 2: 0.25}

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def study(server_url: URL, incidents_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """Three trials with two reports each; no training is needed to look at them."""
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(STUDY.format(incidents=incidents_csv))
    made = create_study(server_url, PostgresStorage(server_url), read_study_file(path))
    for value in VALUES.values():
        trial = made.ask()
        trial.suggest_float("learning_rate", 1e-3, 0.1, log=True)
        trial.suggest_int("epochs", 1, 2)
        trial.report(value / 2, 200)
        trial.report(value, 400)
        made.tell(trial, value)
    return made


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard(server_url: URL, study: optuna.Study, port: int) -> Iterator[psutil.Popen]:
    """The running process, once it has said where it serves."""
    process = start(server_url, port)
    assert process.stdout.readline().startswith(f"http://127.0.0.1:{port}/")
    yield process
    with suppress(psutil.NoSuchProcess):
        process.kill()
    process.communicate()


def start(url: URL, port: int) -> psutil.Popen:
    return psutil.Popen(
        [sys.executable, "-m", "hpo", "dashboard", "--port", str(port)],
        cwd=REPOSITORY,
        env=os.environ | {"HPO_STORAGE": url.render_as_string(hide_password=False)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def page(tmp_path: Path, chromium: dict[str, Any]) -> Iterator[Page]:
    """Of a Chromium with a profile of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as library:
        context = library.chromium.launch_persistent_context(
            tmp_path / "profile", viewport={"width": 1400, "height": 2100}, **chromium
        )
        yield context.new_page()
        context.close()


def answer(port: int, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_page_of_a_study_shows_trials_parameters_and_learning_curves(
    dashboard: psutil.Popen, port: int, page: Page, study: optuna.Study
) -> None:
    page.goto(f"http://127.0.0.1:{port}/")
    page.get_by_text("small").first.click()
    page.get_by_role("heading", name="Intermediate values").wait_for()
    curves = page.locator(".js-plotly-plot", has_text="trial #0")
    curves.wait_for()
    assert curves.locator(".scatterlayer .trace").count() == len(VALUES)
    assert curves.locator(".legendtext").all_text_contents() == ["trial #0 ", "trial #1 ", "trial #2 "]
    page.get_by_text(f"{study.best_value}").first.wait_for()
    page.goto(f"http://127.0.0.1:{port}/dashboard/studies/{study._study_id}/trials?numbers=1")
    for name, value in study.trials[1].params.items():
        page.get_by_text(f"{name} {value}").first.wait_for()


def test_studies_and_trials_cannot_be_changed_through_it(
    dashboard: psutil.Popen, port: int, server_url: URL, study: optuna.Study
) -> None:
    path = f"/api/studies/{study._study_id}"
    assert answer(port, "DELETE", path)[0] == 500
    assert answer(port, "POST", "/api/studies", '{"study_name": "new", "directions": ["minimize"]}')[0] == 500
    assert answer(port, "PUT", f"{path}/note", '{"body": "mine", "version": 1}')[0] >= 400
    storage = PostgresStorage(server_url)
    assert optuna.get_all_study_names(storage) == ["small"]
    assert {t.number: t.value for t in optuna.load_study(study_name="small", storage=storage).trials} == VALUES
    assert answer(port, "GET", path)[0] == 200


def test_it_listens_on_this_machine_only(dashboard: psutil.Popen, port: int) -> None:
    listening = [(c.laddr.ip, c.laddr.port) for c in dashboard.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", port)]


def test_silent_connection_does_not_hold_up_the_others(dashboard: psutil.Popen, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)):
        assert answer(port, "GET", "/api/studies")[0] == 200


def test_port_in_use_is_refused_in_one_line(dashboard: psutil.Popen, server_url: URL, port: int) -> None:
    second = start(server_url, port)
    output = second.communicate(timeout=60)[0]
    assert second.returncode == 2, output
    assert output.startswith(f"hpo: cannot serve on 127.0.0.1:{port} (")
    assert output.count("\n") == 1
