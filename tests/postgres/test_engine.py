"""Opening the database: whatever goes wrong is said in a sentence, and never with the password."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import optuna
import psycopg2.errors
import pytest
from sqlalchemy import URL, make_url

from storage import schema
from storage.engine import StorageError, parse_url
from storage.native import PostgresStorage
from storage.roles import fence

Query = Callable[..., list[tuple[object, ...]]]
SECRET = "p%41{x}@:/ä"
PUBLISHED = {  # by the first digits of their SHA-256
    "schema.sql": "5a32eb2950882185",
    "schema_2.sql": "c7d7be7dc84c8a15",
    "schema_3.sql": "bdb1cf5ba4e0d91a",
    "schema_4.sql": "8909ace169c56bd4",
    "schema_5.sql": "9fe4e57dc8334bee",
    "schema_6.sql": "b09542ef4c63b0f3",
    "schema_7.sql": "754c01ee233f4014",
    "schema_8.sql": "1732976b427fb41e",
}
VERSION = "SELECT version FROM incident_hpo.version"
OURS = """SELECT 'column', table_name::text, column_name::text, data_type::text FROM information_schema.columns
WHERE table_schema = 'incident_hpo' UNION ALL SELECT 'function', proname::text, prosrc, prosecdef::text FROM pg_proc
WHERE pronamespace = 'incident_hpo'::regnamespace ORDER BY 1, 2, 3"""
OPEN = """
from hpo.connect import storage_url
from storage.native import PostgresStorage
go()
print(PostgresStorage(storage_url()).get_all_studies())
"""


@pytest.fixture(scope="module")
def guarded(server_url: URL, query: Callable[..., list[tuple[str]]]) -> URL:
    """The URL of a user whom the server lets in by password alone."""
    query(server_url, "CREATE ROLE guarded SUPERUSER LOGIN PASSWORD %s", SECRET)
    rules = Path(query(server_url, "SHOW hba_file")[0][0])
    rules.write_text(f"local all guarded scram-sha-256\n{rules.read_text()}")
    loaded = "SELECT pg_conf_load_time()"
    before = query(server_url, loaded)
    query(server_url, "SELECT pg_reload_conf()")
    while query(server_url, loaded) == before:  # the server reads its files a moment later
        pass
    return server_url.set(username="guarded", password=SECRET)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_bare_postgresql_means_psycopg2(scheme: str) -> None:
    url = parse_url(f"{scheme}://somebody@db.example/hpo")
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.host, url.database) == ("somebody", "db.example", "hpo")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "canary",
        "postgresql:canary",
        "postgresql://u:canary@h:port/d",
        "postgresql+asyncpg://u:canary@h/d",
        "mysql://u:canary@h/d",
        "https://u:canary@h/d",
        "sqlite:///canary.db",
    ],
)
def test_anything_but_a_url_of_postgresql_is_refused_with_the_form_expected(text: str) -> None:
    with pytest.raises(StorageError, match=r"expected postgresql\+psycopg2://USER@HOST/DATABASE") as caught:
        parse_url(text)
    assert "canary" not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "canary"}, "password authentication failed"),
        ({"database": "nowhere", "password": "canary", "username": "postgres"}, 'database "nowhere" does not exist'),
        ({"query": {}, "host": "127.0.0.1", "port": 1, "password": "canary"}, "Connection refused"),
        ({"query": {"password": "canary", "host": "127.0.0.1", "port": "1"}, "password": None}, "Connection refused"),
    ],
    ids=["wrong password", "unknown database", "refused port", "password among the options"],
)
def test_password_is_in_no_message(guarded: URL, change: dict[str, object], reason: str) -> None:
    url = guarded.set(**change)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=reason) as caught:
        PostgresStorage(parse_url(url.render_as_string(hide_password=False)))
    assert "canary" not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)


def test_password_with_an_at_sign_that_was_not_escaped_is_not_shown() -> None:
    with pytest.raises(StorageError) as caught:
        PostgresStorage(parse_url("postgresql://u:p@canary@127.0.0.1:1/d"))
    assert "canary" not in str(caught.value)


def test_password_with_percent_and_braces_opens_the_storage(guarded: URL, database: URL) -> None:
    url = guarded.set(database=database.database)
    assert PostgresStorage(parse_url(url.render_as_string(hide_password=False))).get_all_studies() == []
    assert make_url(url.render_as_string(hide_password=False)).password == SECRET


def test_eight_processes_opening_an_empty_database_make_one_schema(
    empty_database: URL, database: URL, at_once: Callable[..., list[str]], rows: Callable[[URL], dict[str, list[str]]]
) -> None:
    assert at_once(empty_database, OPEN) == ["[]"] * 8
    assert rows(empty_database) == rows(database)


@pytest.mark.parametrize(
    ("skew", "named"),
    [
        (
            "UPDATE incident_hpo.version SET version = 9, made_by = 'incident-hpo==9.9'",
            r"schema 9.*pip install incident-hpo==9\.9",
        ),
        ("UPDATE alembic_version SET version_num = 'v9.9.9.a'", r"v9\.9\.9\.a.*pip install incident-hpo=="),
        ("ALTER ROLE postgres SET default_transaction_isolation = 'serializable'", "as 'serializable'; ALTER ROLE"),
    ],
    ids=["our schema", "Optuna's tables", "isolation level"],
)
def test_database_that_this_release_cannot_work_with_is_refused_with_the_mend(
    database: URL, query: Callable[..., object], rows: Callable[[URL], dict[str, list[str]]], skew: str, named: str
) -> None:
    before = rows(database)
    query(database, skew)
    try:
        with pytest.raises(StorageError, match=named):
            PostgresStorage(database)
    finally:
        query(database, "ALTER ROLE postgres RESET default_transaction_isolation")
    assert {name: found for name, found in rows(database).items() if "version" not in name} == {
        name: found for name, found in before.items() if "version" not in name
    }


@pytest.fixture
def earlier(empty_database: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
    """A database as the first release made it, with a study and its trial, which a worker holds for an hour."""
    with monkeypatch.context() as patch:
        patch.setattr(schema, "FILES", schema.FILES[:1])
        patch.setattr(schema, "VERSION", 1)
        storage = PostgresStorage(empty_database)
        study = optuna.create_study(study_name="there", storage=storage)
        storage.ask("INSERT INTO incident_hpo.studies VALUES (%s, 1, '1 h')", (study._study_id,))
        claim = "SELECT verdict FROM incident_hpo.claim_v1(%s, 'request', 'worker', 0)"
        assert storage.ask(claim, (study._study_id,)) == [("claimed",)]
        storage.remove_session()
    return empty_database


def test_tables_of_an_earlier_release_are_brought_up_to_date_once_no_worker_runs(
    earlier: URL, database: URL, query: Query, rows: Callable[[URL], dict[str, list[str]]]
) -> None:
    before = rows(earlier)
    with pytest.raises(StorageError, match=r"schema 1, here 8\) while workers run 1 of its trials; stop them"):
        PostgresStorage(earlier)
    assert (rows(earlier), query(earlier, VERSION)) == (before, [(1,)])
    query(earlier, "UPDATE incident_hpo.leases SET expires = clock_timestamp()")
    storage = PostgresStorage(earlier)
    assert storage.claim(1, "worker").verdict == "wait"
    storage.resumed(1, 100)
    assert (query(earlier, VERSION), query(earlier, OURS)) == (query(database, VERSION), query(database, OURS))


def test_upgrade_takes_optunas_tables_along_and_refuses_both_under_a_worker(database: URL, query: Query) -> None:
    revision = "SELECT version_num FROM public.alembic_version"
    storage = PostgresStorage(database)
    study = optuna.create_study(storage=storage)
    storage.manage(study._study_id, 1, lease_s=60)
    assert storage.claim(study._study_id, "worker").verdict == "claimed"
    query(database, "DROP INDEX IF EXISTS trials_study_id_key")  # as Optuna 3.1 left it
    query(database, "UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    with pytest.raises(StorageError, match=r"while workers run 1 of its trials; stop them"):
        schema.upgrade(database)
    assert query(database, revision) == [("v3.0.0.d",)]
    with pytest.raises(StorageError, match=r"if this release is the later one, hpo db upgrade"):
        PostgresStorage(database)
    query(database, "UPDATE incident_hpo.leases SET expires = clock_timestamp()")
    assert schema.upgrade(database) == (schema.VERSION, schema.VERSION)
    assert query(database, revision) == [(schema.OPTUNA_REVISION,)]
    assert query(database, "SELECT to_regclass('public.trials_study_id_key') IS NOT NULL") == [(True,)]
    assert PostgresStorage(database).get_all_studies()


def test_functions_of_another_release_are_not_called(database: URL, query: Callable[..., object]) -> None:
    storage = PostgresStorage(database)
    study = optuna.create_study(storage=storage)
    storage.manage(study._study_id, 1, lease_s=60)
    query(database, "ALTER FUNCTION incident_hpo.claim_v2 RENAME TO claim_v0")
    with pytest.raises(psycopg2.errors.UndefinedFunction):
        storage.claim(study._study_id, "worker")
    assert study.get_trials() == []


@pytest.mark.parametrize(("name", "digest"), PUBLISHED.items())
def test_what_a_database_was_made_with_stays_as_it_was(name: str, digest: str) -> None:
    """A change goes into the next schema_N.sql: databases that are there have run the ones before."""
    assert sha256(files("storage").joinpath(name).read_bytes()).hexdigest()[:16] == digest


def test_database_of_every_version_is_upgraded_works_and_is_fenced(
    empty_database: URL, database: URL, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in range(1, schema.VERSION):
        query(empty_database, "DROP SCHEMA public CASCADE")
        query(empty_database, "DROP SCHEMA IF EXISTS incident_hpo CASCADE")
        query(empty_database, "CREATE SCHEMA public")
        with monkeypatch.context() as patch:
            patch.setattr(schema, "FILES", schema.FILES[:version])
            patch.setattr(schema, "VERSION", version)
            PostgresStorage(empty_database).remove_session()
        assert schema.upgrade(empty_database) == (version, schema.VERSION)
        assert query(empty_database, OURS) == query(database, OURS)
        storage = PostgresStorage(empty_database)
        study = optuna.create_study(storage=storage)
        storage.manage(study._study_id, 1, lease_s=60)
        claim = storage.claim(study._study_id, "worker")
        assert (claim.verdict, (claim.token or 0) > 2**20) == ("claimed", True)
        assert fence(empty_database) == 1
        storage.remove_session()


def test_version_that_is_missing_is_a_sentence(database: URL, query: Query) -> None:
    query(database, "DELETE FROM incident_hpo.version")
    with pytest.raises(StorageError, match=r"incident_hpo\.version.* is empty"):
        PostgresStorage(database)


def test_tables_of_a_later_optuna_are_refused_by_the_upgrade(database: URL, query: Query) -> None:
    query(database, "UPDATE alembic_version SET version_num = 'v9.9.9.a'")
    with pytest.raises(StorageError, match=r"v9\.9\.9\.a"):
        schema.upgrade(database)


def test_who_waits_for_another_to_make_tables_does_not_wait_for_ever(
    empty_database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "CREATION_TIMEOUT_S", 1)
    connection = psycopg2.connect(host=empty_database.query["host"], user="postgres", dbname=empty_database.database)
    with closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (schema.CREATION_LOCK,))
        with pytest.raises(StorageError, match="another process has been making tables or a study there"):
            PostgresStorage(empty_database)
