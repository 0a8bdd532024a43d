"""Through PgBouncer in transaction mode, where every transaction may have another session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from hpo.dashboard import reading_storage
from storage.roles import make_roles
from tests.chaos.crew import check_record, make_crew
from tests.postgres.conftest import Run
from tests.servers import execute, open_folder, pgbouncer, postgres


@pytest.fixture(scope="module")
def pooled() -> Iterator[URL]:
    """Four sessions for all."""
    with open_folder() as folder, postgres(folder, "host all all 127.0.0.1/32 trust", {}) as server:
        execute(server, "CREATE DATABASE hpo")
        make_roles_in(server.set(database="hpo"))
        with pgbouncer(folder, server, pool_size=4) as port:
            yield URL.create("postgresql+psycopg2", "postgres", None, "127.0.0.1", port, "hpo")


def make_roles_in(url: URL) -> None:
    from storage.native import PostgresStorage

    PostgresStorage(url).remove_session()
    make_roles(url, {})


def test_eight_workers_end_two_hundred_trials_over_four_sessions(pooled: URL, tmp_path: Path) -> None:
    crew = make_crew(pooled, tmp_path, trials=200, lease_s=5.0, step_s=0.005)
    crew.start(8, url=pooled.set(username="hpo_worker").render_as_string(hide_password=False))
    assert crew.join(120) == [0] * 8
    check_record(pooled, crew, trials=200)


def test_commands_and_the_dashboards_storage_work_through_it(pooled: URL, study_yaml: Path, hpo: Run) -> None:
    for arguments in (("db", "upgrade"), ("create", str(study_yaml)), ("status", "small"), ("workers",), ("doctor",)):
        done = hpo(pooled, *arguments)
        assert done.returncode == 0, done.stdout
    assert "small" in {study.study_name for study in reading_storage(pooled).get_all_studies()}
