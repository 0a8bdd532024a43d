"""`hpo dashboard` as it is started on a laptop: served to this machine alone, and nothing can be changed through it."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import psutil
import psycopg2
import pytest
from sqlalchemy import URL

from hpo.dashboard import reading_storage
from hpo.study import create_study
from hpo.study_file import read_study_file
from storage.connection import Unavailable
from storage.native import PostgresStorage
from tests.browser.served import Served, all_rows, free_port, serving, start
from tests.conftest import new_database
from tests.recorded import CURVES, make_recorded_study

if TYPE_CHECKING:
    from playwright.sync_api import Page

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
def dashboard(server_url: URL, study: optuna.Study) -> Iterator[Served]:
    with serving(server_url) as served:
        yield served


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


def test_page_of_a_study_shows_trials_parameters_and_learning_curves(
    dashboard: Served, page: Page, study: optuna.Study
) -> None:
    page.goto(f"{dashboard.origin}/?token={dashboard.token}")
    page.get_by_text("small").first.click()
    page.get_by_role("heading", name="Intermediate values").wait_for()
    curves = page.locator(".js-plotly-plot", has_text="trial #0")
    curves.wait_for()
    assert curves.locator(".scatterlayer .trace").count() == len(VALUES)
    assert curves.locator(".legendtext").all_text_contents() == ["trial #0 ", "trial #1 ", "trial #2 "]
    page.get_by_text(f"{study.best_value}").first.wait_for()
    page.goto(f"{dashboard.origin}/dashboard/studies/{study._study_id}/trials?numbers=1")
    for name, value in study.trials[1].params.items():
        page.get_by_text(f"{name} {value}").first.wait_for()


def test_studies_and_trials_cannot_be_changed_through_it(
    dashboard: Served, server_url: URL, study: optuna.Study
) -> None:
    path, cookie = f"/api/studies/{study._study_id}", dashboard.cookie_of()
    new = {"study_name": "new", "directions": ["minimize"]}
    assert dashboard.ask("DELETE", path, cookie=cookie).status == 403
    assert dashboard.ask("POST", "/api/studies", new, cookie=cookie).status == 403
    assert dashboard.ask("PUT", f"{path}/note", {"body": "mine", "version": 1}, cookie=cookie).status == 403
    storage = PostgresStorage(server_url)
    assert optuna.get_all_study_names(storage) == ["small"]
    assert {t.number: t.value for t in optuna.load_study(study_name="small", storage=storage).trials} == VALUES
    assert dashboard.ask("GET", path, cookie=cookie).status == 200


def test_what_it_reads_with_cannot_write(database: URL) -> None:
    """Whatever a later optuna-dashboard does when it is only asked for something."""
    made, _ = make_recorded_study(database)
    before = all_rows(database)
    with pytest.raises(Unavailable, match="in a read-only transaction"):
        reading_storage(database).set_study_user_attr(made._study_id, "mine", 1)
    assert all_rows(database) == before
    assert len(reading_storage(database).get_all_trials(made._study_id)) == len(CURVES)


def test_tables_of_a_new_database_are_made_first(server_url: URL) -> None:
    with new_database(server_url, "template0") as url, serving(url, "--write") as served:
        studies = served.ask("GET", "/api/studies", cookie=served.cookie_of())
        assert (studies.status, json.loads(studies.content)) == (200, {"study_summaries": []})


def test_role_that_may_only_read_serves_it(database: URL) -> None:
    make_recorded_study(database)
    with closing(
        psycopg2.connect(host=database.query["host"], user="postgres", dbname=database.database)
    ) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("CREATE ROLE only_reads LOGIN")
        try:
            cursor.execute("GRANT USAGE ON SCHEMA public, incident_hpo TO only_reads")
            cursor.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public, incident_hpo TO only_reads")
            with serving(database.set(username="only_reads")) as served:
                cookie = served.cookie_of()
                for path in ("/api/studies", "/api/studies/1", "/csv/1", "/api/studies/1/param_importances"):
                    assert served.ask("GET", path, cookie=cookie).status == 200
        finally:
            cursor.execute("DROP OWNED BY only_reads")
            cursor.execute("DROP ROLE only_reads")


def test_it_listens_on_this_machine_only(dashboard: Served) -> None:
    connections = dashboard.process.net_connections()
    listening = [(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", dashboard.port)]


def test_data_of_a_study_are_sent_small_to_whoever_takes_that(dashboard: Served, study: optuna.Study) -> None:
    path, cookie = f"/api/studies/{study._study_id}", dashboard.cookie_of()
    whole = dashboard.ask("GET", path, headers={"Accept-Encoding": "identity"}, cookie=cookie)
    for sent in ("gzip", "br, gzip;q=0.5", "gzip, deflate"):
        small = dashboard.ask("GET", path, headers={"Accept-Encoding": sent}, cookie=cookie)
        assert (small.headers["content-encoding"], gzip.decompress(small.content)) == ("gzip", whole.content)
        assert int(small.headers["content-length"]) == len(small.content) < len(whole.content) / 2
    for sent in ("", "br", "gzip;q=0", "deflate, gzip; q=0.0"):
        assert dashboard.ask("GET", path, headers={"Accept-Encoding": sent}, cookie=cookie).content == whole.content


def test_port_in_use_is_refused_in_one_line(dashboard: Served, server_url: URL) -> None:
    code, output = ended(server_url, dashboard.port)
    assert code == 2, output
    assert output.startswith(f"hpo: cannot serve on 127.0.0.1:{dashboard.port} (")
    assert output.count("\n") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "hpo.example.com"])
def test_address_that_others_reach_is_refused_without_users(server_url: URL, host: str) -> None:
    code, output = ended(server_url, free_port(), "--host", host)
    assert (code, output) == (
        2,
        f"hpo: {host} can be reached from other machines: say who may log in, with --access FILE\n",
    )


@pytest.mark.parametrize("host", ["::1", "localhost", "127.0.0.7"])
def test_any_address_of_this_machine_alone_will_do(server_url: URL, host: str) -> None:
    process = start(server_url, port := free_port(), "--host", host)
    place = f"[{host}]" if ":" in host else host
    try:
        assert re.fullmatch(
            rf"http://{re.escape(place)}:{port}/\?token=[\w-]{{43}}  \(.*\)\n", process.stdout.readline()
        )
        with closing(HTTPConnection(host, port, timeout=60)) as connection:
            connection.request("GET", "/api/studies")
            assert connection.getresponse().status == 401
    finally:
        process.kill()
        process.communicate()


def ended(url: URL, port: int, *options: str) -> tuple[int, str]:
    process = start(url, port, *options)
    try:
        output = process.communicate(timeout=60)[0]
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # it serves, where it should have refused
    return process.returncode, output
