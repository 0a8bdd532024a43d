"""Databases, rows and real processes for the tests of the service."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import psycopg2
import pytest
from sqlalchemy import URL

from tests import canaries
from tests.conftest import TEMPLATE, new_database

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 120

Query = Callable[..., list[tuple[object, ...]]]
Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., subprocess.CompletedProcess[str]]
AtOnce = Callable[..., list[str]]


@pytest.fixture(scope="session")
def query() -> Query:
    """query(url, statement, *values): rows, each statement its own transaction."""

    def run(url: URL, statement: str, *values: object) -> list[tuple[object, ...]]:
        connection = psycopg2.connect(host=url.query["host"], user="postgres", dbname=url.database)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    return run


@pytest.fixture(scope="session")
def rows(query: Query) -> Callable[[URL], dict[str, list[str]]]:
    """Every row of every table, as text."""

    def dump(url: URL) -> dict[str, list[str]]:
        tables = query(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        found = {str(name): query(url, f"SELECT t::text FROM {name} t ORDER BY 1") for (name,) in tables}
        return {name: [str(row) for (row,) in rows] for name, rows in found.items()}

    return dump


@pytest.fixture
def empty_database(server_url: URL) -> Iterator[URL]:
    """A database without any table."""
    with new_database(server_url, "template0") as url:
        yield url


@pytest.fixture(scope="module")
def module_database(server_url: URL) -> Iterator[URL]:
    """A database with Optuna's tables, for all tests of a module."""
    with new_database(server_url, TEMPLATE) as url:
        yield url


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers of the module leave their checkpoints."""
    return tmp_path_factory.mktemp("home") / "checkpoints"


@pytest.fixture(scope="module")
def start(checkpoints: Path) -> Iterator[Start]:
    """start(url, *arguments): `python ...` with HPO_STORAGE, in a session of its own; killed at the module's end."""
    started = []
    home = {"HPO_HOME": str(checkpoints.parent)}

    def popen(url: URL, *arguments: str | Path, cwd: Path = REPOSITORY, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=os.environ | {"HPO_STORAGE": url.render_as_string(hide_password=False)} | home | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        process.communicate = partial(_communicate, process.communicate)  # type: ignore[method-assign]
        return process

    yield popen
    for process in started:
        with suppress(ProcessLookupError), process:
            os.killpg(process.pid, SIGKILL)


def _communicate(communicate: Callable[..., tuple[str, str]], *arguments: Any, **keywords: Any) -> tuple[str, str]:
    output = communicate(*arguments, **keywords)
    canaries.refuse(output[0] or "", "its output")
    return output


@pytest.fixture(scope="module")
def hpo(start: Start) -> Run:
    """hpo(url, *arguments): the command line as a process; standard output and error together in `stdout`."""

    def run(url: URL, *arguments: str | Path, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
        process = start(url, "-m", "hpo", *arguments, cwd=cwd)
        output = process.communicate(timeout=TIMEOUT_S)[0]
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    return run


@pytest.fixture(scope="module")
def at_once(start: Start) -> AtOnce:
    """at_once(url, script): the lines that eight processes print, which the script becomes when it calls go()."""

    def run(url: URL, script: str, *arguments: str | Path) -> list[str]:
        # Buffered: a line is then one write, as eight share the pipe.
        process = start(url, "-c", FORK + script, *arguments, PYTHONUNBUFFERED="")
        output = process.communicate(timeout=TIMEOUT_S)[0]
        assert process.returncode == 0, output
        return output.splitlines()

    return run


@pytest.fixture(scope="module")
def canary_study(tmp_path_factory: pytest.TempPathFactory, incidents_csv: Path) -> Path:
    """A study of three short trials; a distinctive word stands in every ticket, a baseline outside of the bounds."""
    folder = tmp_path_factory.mktemp("study")
    with incidents_csv.open(newline="", encoding="utf-8") as file:
        tickets = [row | {"description": f"{canaries.TICKET} {row['description']}"} for row in csv.DictReader(file)]
    with (folder / "incidents.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, tickets[0].keys())
        writer.writeheader()
        writer.writerows(tickets)
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


FORK = """
import os, sys
import alembic.command, alembic.script, psycopg2, sqlalchemy.dialects.postgresql.psycopg2  # once for all eight
def go():
    children = []
    for _ in range(8):
        children.append(os.fork())
        if not children[-1]:
            return
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(f"exit codes {codes}" if any(codes) else 0)
"""
STUDY = """name: small
incidents: {path: incidents.csv, columns: {duplicate_of: duplicate_of}}
pairs: {held_out: 1000}
mining: {train_pairs: 400}
training: {eval_every_examples: 200}
space:
  parameters:
    learning_rate: {type: float, low: 1e-3, high: 0.1, log: true}
    epochs: {type: int, low: 1, high: 2}
  baselines:
    v4: {learning_rate: 1e-5, epochs: 8}
budget: {trials: 3}
lease_s: 3
"""
