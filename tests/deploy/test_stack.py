"""The services of docker-compose.yml in their order, from an empty folder: from secrets to a best.yaml."""

from __future__ import annotations

import shutil
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ruamel.yaml import YAML

from tests.deploy.stack import Stack, check, make_secrets, new_stack, run
from tests.postgres.conftest import STUDY
from tests.servers import open_folder, program

WORKERS, CONNECTIONS_EACH = 64, 3


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Certificates made, the database serving, its roles and tables made."""
    program("initdb")
    with open_folder() as folder:
        made = new_stack(folder)
        check(made.make_certificates())
        with made.serving():
            check(made.hpo("migrate"))
            yield made


def connect(stack: Stack, **changed: str) -> psycopg2.extensions.connection:
    """As a worker, unless something is changed."""
    given: dict[str, Any] = {
        "host": "postgres",
        "hostaddr": "127.0.0.1",
        "port": str(stack.port),
        "dbname": "hpo",
        "user": "hpo_worker",
        "password": (stack.folder / "secrets/hpo_worker_password").read_text().strip(),
        "sslmode": "verify-full",
        "sslrootcert": str(stack.place("worker", "/run/tls/ca.crt")),
    }
    connection: psycopg2.extensions.connection = psycopg2.connect(**(given | changed))
    return connection


def test_secrets_are_long_distinct_and_behind_a_closed_folder(stack: Stack) -> None:
    secrets = {path.name: path.read_text() for path in (stack.folder / "secrets").iterdir()}
    passwords = [text.strip() for name, text in secrets.items() if name.endswith("_password")]
    assert len(secrets) == 5
    assert len(set(passwords)) == 4
    assert all(len(password) == 48 for password in passwords)
    assert stat.S_IMODE((stack.folder / "secrets").stat().st_mode) == 0o700


def test_making_secrets_again_changes_none_and_a_name_adds_a_user(stack: Stack) -> None:
    before = {path.name: path.read_bytes() for path in (stack.folder / "secrets").iterdir()}
    check(make_secrets(stack))
    assert {path.name: path.read_bytes() for path in (stack.folder / "secrets").iterdir()} == before
    check(make_secrets(stack, "anna"))
    access = stack.folder / "secrets/access.yaml"
    assert list(YAML(typ="safe").load(access.read_text())["users"]) == ["admin", "anna"]
    assert stat.S_IMODE(access.stat().st_mode) == 0o444


def test_the_servers_key_is_its_own_and_the_authoritys_is_gone(stack: Stack) -> None:
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (stack.folder / "volumes/tls").iterdir()}
    assert files == {"ca.crt": 0o644, "server.crt": 0o644, "server.key": 0o600}


def test_making_certificates_again_changes_nothing(stack: Stack) -> None:
    before = (stack.folder / "volumes/tls/server.crt").read_bytes()
    check(stack.make_certificates())
    assert (stack.folder / "volumes/tls/server.crt").read_bytes() == before


def test_the_database_is_well_by_its_own_check(stack: Stack) -> None:
    line = stack.services["postgres"]["healthcheck"]["test"][1].replace("$$", "$")
    environment = stack.server_environment()
    assert run(["sh", "-c", stack.localised("postgres", line)], environment, as_server=True).stdout == "1\n"
    assert run(["sh", "-c", line], environment | {"PGPORT": "1"}, as_server=True).returncode != 0


def test_migrating_again_makes_nothing(stack: Stack) -> None:
    done = stack.hpo("migrate")
    assert done.returncode == 0
    assert "roles made: none" in done.stdout


def test_a_new_password_of_a_role_counts_when_migrated(stack: Stack) -> None:
    old = (stack.folder / "secrets/hpo_worker_password").read_text().strip()
    (stack.folder / "secrets/hpo_worker_password").unlink()
    check(make_secrets(stack))
    stack.mount()
    check(stack.hpo("migrate"))
    connect(stack).close()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        connect(stack, password=old)


def test_the_owner_is_no_superuser(stack: Stack) -> None:
    password = (stack.folder / "secrets/hpo_owner_password").read_text().strip()
    connection = connect(stack, user="hpo_owner", password=password)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper, rolcreatedb, rolreplication FROM pg_roles WHERE rolname = current_user")
        assert cursor.fetchone() == (False, False, False)
    connection.close()


def test_no_password_reaches_the_servers_log(stack: Stack) -> None:
    logs = (stack.place("postgres", "/var/lib/postgresql/data") / "first.log").read_text()
    assert "ready to accept connections" in logs
    for path in (stack.folder / "secrets").glob("*_password"):
        assert path.read_text().strip() not in logs


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"sslmode": "disable"}, "no encryption"),
        ({"password": "wrong"}, "password authentication failed"),
        ({"host": "elsewhere"}, 'does not match host name "elsewhere"'),
        ({"sslrootcert": "/etc/ssl/certs/ca-certificates.crt"}, "certificate verify failed"),
        ({"user": "postgres"}, "no pg_hba.conf entry"),
        ({"dbname": "postgres"}, "no pg_hba.conf entry"),
        ({"ssl_max_protocol_version": "TLSv1.2"}, "SSL error"),
    ],
)
def test_who_comes_otherwise_than_the_files_say_is_refused(stack: Stack, changed: dict[str, str], refusal: str) -> None:
    with pytest.raises(psycopg2.OperationalError, match=refusal):
        connect(stack, **changed)


def test_sixty_four_workers_with_three_connections_each_find_room(stack: Stack) -> None:
    with ExitStack() as open_ones:
        for _ in range(WORKERS * CONNECTIONS_EACH):
            open_ones.callback(connect(stack).close)


def test_a_study_of_the_host_is_searched_and_exported(stack: Stack, incidents_csv: Path) -> None:
    shutil.copy(incidents_csv, stack.folder / "studies/incidents.csv")
    (stack.folder / "studies/small.yaml").write_text(STUDY)
    check(stack.hpo("hpo", "create", "/studies/small.yaml"))
    check(stack.hpo("worker", "worker", "small"))
    check(stack.hpo("hpo", "export", "small", "-o", "/results/best.yaml"))
    assert YAML(typ="safe").load((stack.folder / "results/best.yaml").read_text())["schema_version"]


def test_the_worker_by_its_own_command_launches_on_the_named_study(stack: Stack) -> None:
    """The study is not there: an end with 2, which the policy tries again five times and no more."""
    command = [word.replace("${STUDY:-demo}", "nowhere") for word in stack.command("worker")]
    done = stack.hpo("worker", *command)
    assert done.returncode == 2
    assert "nowhere" in done.stdout


def test_the_dashboard_is_well_by_its_own_check_and_shows_nothing_without_a_login(stack: Stack) -> None:
    test = stack.services["dashboard"]["healthcheck"]["test"][1:]
    probe = [word.replace("8080", str(stack.dashboard_port)) for word in test]
    assert run(probe).returncode != 0
    with stack.dashboard() as process:
        deadline = time.monotonic() + 60
        while run(probe).returncode != 0:  # each attempt is a process: no busy wait
            assert process.poll() is None
            assert time.monotonic() < deadline
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{stack.dashboard_port}/api/studies", timeout=10)
        assert refused.value.code == 401
        refused.value.close()
