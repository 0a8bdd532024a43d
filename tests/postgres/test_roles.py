"""The roles of a shared database: everything works under them, and nothing more than that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
from sqlalchemy import URL

from storage.leases import LeaseLost
from storage.native import PostgresStorage
from storage.roles import fence, make_roles
from storage.workers import Place, register
from tests.chaos.crew import check_record, make_crew
from tests.postgres.conftest import Query, Run, Start

Dump = Callable[[URL], dict[str, list[str]]]
FORBIDDEN = (
    "DELETE FROM public.trials",
    "DELETE FROM public.studies",
    "DELETE FROM public.trial_values",
    "DELETE FROM public.trial_intermediate_values",
    "DELETE FROM incident_hpo.leases",
    "DELETE FROM incident_hpo.workers",
    "DELETE FROM incident_hpo.notices",
    "DELETE FROM incident_hpo.datasets",
    "TRUNCATE public.trials CASCADE",
    "UPDATE public.trials SET state = 'COMPLETE'",
    "UPDATE public.trial_values SET value = 1",
    "UPDATE public.studies SET study_name = 'mine'",
    "UPDATE public.study_system_attributes SET value_json = '1'",
    "UPDATE incident_hpo.studies SET budget = 1000000",
    "UPDATE incident_hpo.studies SET ended = NULL, paused = NULL",
    "UPDATE incident_hpo.leases SET expires = 'infinity', token = 1",
    "UPDATE incident_hpo.version SET version = 99",
    "UPDATE public.alembic_version SET version_num = 'x'",
    "INSERT INTO public.trials (number, study_id, state) VALUES (99, 1, 'COMPLETE')",
    "INSERT INTO public.studies (study_name) VALUES ('mine')",
    "INSERT INTO public.study_user_attributes (study_id, key, value_json) VALUES (1, 'a', '1')",
    "INSERT INTO incident_hpo.studies (study_id, budget, lease) VALUES (1, 1, '1 s')",
    "INSERT INTO incident_hpo.datasets VALUES ('a', 1)",
    "INSERT INTO incident_hpo.artifacts VALUES ('a', 1, '')",
    "SELECT token FROM incident_hpo.leases",
    "SELECT request FROM incident_hpo.leases",
    "SELECT * FROM incident_hpo.leases",
    "SELECT incident_hpo.save_v1(1, NULL, '{}', 'FAIL')",
    "SELECT incident_hpo.claim_v1(1, 'r', 'w', 0)",
    "SELECT incident_hpo.fill_v1(1, '{}')",
    "SELECT incident_hpo.requeue_v1(1, 1, 'because')",
    "SELECT incident_hpo.create_v1(1, 'r', 'COMPLETE', NULL, NULL, '{}')",
    "SELECT incident_hpo.fence_v1()",
    "SELECT incident_hpo.drain_v1('box')",
    "SELECT FROM public.trials FOR UPDATE",
    "BEGIN; LOCK TABLE public.trials",
    "CREATE TABLE public.mine (a int)",
    "CREATE TABLE incident_hpo.mine (a int)",
    "CREATE TEMPORARY TABLE mine (a int)",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE ROLE mine SUPERUSER",
    "CREATE DATABASE mine",
    "DROP EXTENSION plpgsql CASCADE",
    "DROP TABLE public.trials CASCADE",
    "DROP SCHEMA incident_hpo CASCADE",
    "ALTER TABLE public.trials DISABLE TRIGGER ALL",
    "ALTER TABLE incident_hpo.leases DISABLE TRIGGER clock",
    "ALTER FUNCTION incident_hpo.save_v1 SECURITY INVOKER",
    "ALTER ROLE hpo_worker SUPERUSER",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "COPY public.trials TO PROGRAM 'cat'",
    "COPY public.studies FROM '/etc/passwd'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT rolpassword FROM pg_authid",
    "ALTER SYSTEM SET fsync = off",
)


@pytest.fixture
def shared(database: URL) -> URL:
    make_roles(database, {})
    return database


def as_role(url: URL, role: str) -> URL:
    return url.set(username=role)


def refused(url: URL, role: str, statement: str) -> bool:
    connection = psycopg2.connect(host=url.query["host"], user=role, dbname=url.database)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
    except psycopg2.errors.InsufficientPrivilege:
        return True
    finally:
        connection.close()
    return False


@pytest.mark.parametrize("role", ["hpo_worker", "hpo_reader"])
def test_no_forbidden_statement_succeeds(shared: URL, tmp_path: Path, rows: Dump, query: Query, role: str) -> None:
    crew = make_crew(shared, tmp_path, trials=3, step_s=0.0)
    crew.start()
    crew.join()
    before = rows(shared)
    ours = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'incident_hpo' ORDER BY 1"
    inside = {str(name): query(shared, f"SELECT * FROM incident_hpo.{name}") for (name,) in query(shared, ours)}
    assert [statement for statement in FORBIDDEN if not refused(shared, role, statement)] == []
    assert rows(shared) == before
    assert inside == {name: query(shared, f"SELECT * FROM incident_hpo.{name}") for name in inside}


def test_reader_calls_no_function_that_writes_and_sees_no_ticket(shared: URL) -> None:
    for statement in (
        "SELECT incident_hpo.claim_v2(1, 'r', 'w', 0)",
        "SELECT incident_hpo.save_leased_v1(1, NULL, '{}', 'FAIL')",
        "SELECT incident_hpo.sweep_v1(1, 0)",
        "SELECT incident_hpo.end_v1(1, 'because')",
        "SELECT incident_hpo.register_v1('w', 1, 'h', 's', 'd', NULL)",
        "INSERT INTO incident_hpo.notices VALUES (1, 'best')",
        "SELECT content FROM incident_hpo.dataset_chunks",
    ):
        assert refused(shared, "hpo_reader", statement), statement


@pytest.mark.parametrize("token", [None, 0, 1, -1])
def test_worker_role_writes_to_no_trial_that_it_has_not_claimed(
    shared: URL, tmp_path: Path, query: Query, rows: Dump, token: int | None
) -> None:
    make_crew(shared, tmp_path, trials=3)
    owner, worker = PostgresStorage(shared), PostgresStorage(as_role(shared, "hpo_worker"))
    study = owner.get_study_id_from_name("study")
    waiting, claimed = owner.create_new_trial(study), owner.claim(study, "another").trial_id
    before = rows(shared)
    for trial in (waiting, claimed):
        for name, more in (("save_leased_v1", "'{}', 'FAIL'"), ("release_v1", "'because'"), ("resumed_v1", "9")):
            worker.ask(f"SELECT incident_hpo.{name}(%s, %s, {more})", (trial, token))
        worker.ask("SELECT incident_hpo.renew_v1(%s, %s)", (trial, token))
    assert rows(shared) == before


def test_crew_works_on_a_study_as_the_worker_role(shared: URL, tmp_path: Path) -> None:
    crew = make_crew(shared, tmp_path, trials=12, step_s=0.0)
    location = as_role(shared, "hpo_worker").render_as_string(hide_password=False)
    crew.start(3, url=location)
    assert crew.join() == [0, 0, 0]
    check_record(shared, crew, trials=12)


def test_real_worker_trains_as_the_worker_role_and_the_reader_looks_at_all_of_it(
    shared: URL, study_yaml: Path, hpo: Run, start: Start
) -> None:
    assert hpo(shared, "create", str(study_yaml)).returncode == 0
    study_yaml.unlink()
    worked = hpo(as_role(shared, "hpo_worker"), "worker", "small")
    assert worked.returncode == 0, worked.stdout
    reader = as_role(shared, "hpo_reader")
    found = json.loads(hpo(reader, "status", "small", "--json").stdout)
    assert found["complete"] + found["pruned"] == 3
    for arguments in (("report", "small"), ("trial", "small", "1"), ("workers",), ("costs", "small")):
        done = hpo(reader, *arguments)
        assert done.returncode == 0, done.stdout


def test_command_that_a_role_may_not_do_ends_with_a_sentence(shared: URL, tmp_path: Path, hpo: Run) -> None:
    make_crew(shared, tmp_path, trials=3)
    done = hpo(as_role(shared, "hpo_worker"), "study", "pause", "study")
    assert (done.returncode, done.stdout) == (78, "hpo: PostgreSQL refuses: permission denied for table studies\n")


def test_hpo_db_init_makes_tables_and_roles_and_sets_passwords_that_stand_nowhere(
    empty_database: URL, tmp_path: Path, hpo: Run, query: Query
) -> None:
    secret = tmp_path / "worker.txt"
    secret.write_text("Kanarienpasswort\n")
    for times in range(2):
        done = hpo(empty_database, "db", "init", "--worker-password-file", str(secret))
        assert done.returncode == 0, done.stdout
        assert "Kanarienpasswort" not in done.stdout
        assert ("roles made: none, all there" in done.stdout) or times == 0
    (stored,) = query(empty_database, "SELECT rolpassword FROM pg_authid WHERE rolname = 'hpo_worker'")[0]
    assert str(stored).startswith("SCRAM-SHA-256$")
    assert hpo(as_role(empty_database, "hpo_reader"), "workers").returncode == 0


@pytest.mark.parametrize("text", ["", "\n", "one\ntwo\n"])
def test_password_file_that_holds_no_password_is_refused(database: URL, tmp_path: Path, hpo: Run, text: str) -> None:
    (tmp_path / "secret").write_text(text)
    done = hpo(database, "db", "init", "--reader-password-file", str(tmp_path / "secret"))
    assert done.returncode == 2
    assert "expected a password alone in one line" in done.stdout


def test_role_that_may_make_no_roles_is_told_who_may(shared: URL, hpo: Run) -> None:
    done = hpo(as_role(shared, "hpo_reader"), "db", "init")
    assert done.returncode == 78
    assert "run it as the database's owner" in done.stdout


def test_grants_follow_the_migrations(empty_database: URL, database: URL) -> None:
    make_roles(database, {})  # roles are of the whole server
    storage = PostgresStorage(empty_database)
    study = storage.get_study_id_from_name(open_new(storage))
    storage.manage(study, 1, lease_s=60)
    assert PostgresStorage(as_role(empty_database, "hpo_worker")).claim(study, "worker").verdict == "claimed"


def open_new(storage: PostgresStorage) -> str:
    import optuna

    return optuna.create_study(study_name="new", storage=storage).study_name


def test_worker_from_before_a_restore_is_fenced_and_begins_anew(shared: URL, tmp_path: Path, query: Query) -> None:
    crew = make_crew(shared, tmp_path, trials=5, lease_s=1.5, step_s=30.0)
    crew.start()
    old = PostgresStorage(shared)
    study = old.get_study_id_from_name("study")
    register(old.ask, "old", study, Place("box", "cpu", "cpu", None))
    claim = old.claim(study, "old")
    assert claim.trial_id is not None
    while query(shared, "SELECT count(*) FROM incident_hpo.leases WHERE held") != [(2,)]:
        pass
    assert fence(shared) == 2
    with pytest.raises(LeaseLost):
        old.set_trial_intermediate_value(claim.trial_id, 1, 0.5)
    assert crew.join(30.0) == [75]  # it is known no more
    again = PostgresStorage(shared).claim(study, "new")
    assert (again.verdict, again.token != claim.token) == ("claimed", True)
    assert again.attempt == 1  # the restore was not the trial's fault


def test_roles_that_may_more_than_they_should_are_refused(database: URL, query: Query, hpo: Run) -> None:
    make_roles(database, {})
    query(database, "ALTER ROLE hpo_reader CREATEDB")
    try:
        done = hpo(database, "db", "init")
        assert (done.returncode, "hpo_reader may do more than" in done.stdout) == (78, True), done.stdout
    finally:
        query(database, "ALTER ROLE hpo_reader NOCREATEDB")
    assert hpo(database, "db", "init").returncode == 0


def test_role_without_tables_to_see_is_told_who_makes_them(empty_database: URL, shared: URL, hpo: Run) -> None:
    done = hpo(as_role(empty_database, "hpo_worker"), "workers")
    assert (done.returncode, done.stdout.count("\n"), "hpo db init" in done.stdout) == (78, 1, True), done.stdout


def test_trial_that_cannot_be_read_is_named_in_a_sentence(shared: URL, tmp_path: Path, query: Query, hpo: Run) -> None:
    make_crew(shared, tmp_path, trials=3)
    worker = PostgresStorage(as_role(shared, "hpo_worker"))
    claim = worker.claim(worker.get_study_id_from_name("study"), "worker")
    for column, text in (("user_attrs", "{bad"), ("user_attrs", "[" * 100_000), ("params", "garbage")):
        entry = f'["x", "1", "{text}"]' if column == "params" else f'["x", "{text}"]'
        saved = worker.ask(
            "SELECT verdict FROM incident_hpo.save_leased_v1(%s, %s, %s, NULL)",
            (claim.trial_id, claim.token, f'{{"{column}": [{entry}]}}'),
        )
        assert saved == [("ok",)]
        for arguments in (("status", "study"), ("report", "study")):
            done = hpo(shared, *arguments)
            assert (done.returncode, done.stdout.count("\n")) == (78, 1), done.stdout
            assert f"DELETE FROM public.trials WHERE trial_id = {claim.trial_id}" in done.stdout
        query(shared, "DELETE FROM trial_user_attributes WHERE key = 'x'")


def test_what_a_worker_calls_itself_moves_no_cursor(shared: URL, tmp_path: Path, hpo: Run) -> None:
    make_crew(shared, tmp_path, trials=3)
    storage = PostgresStorage(as_role(shared, "hpo_worker"))
    study = storage.get_study_id_from_name("study")
    register(storage.ask, "victim", study, Place("\x1b[2J\x1b]0;mine\x07", "slot", "dev\n\x1b[31mred", None))
    done = hpo(shared, "workers")
    assert (done.returncode, "\x1b" in done.stdout, "\x07" in done.stdout) == (0, False, False), done.stdout
