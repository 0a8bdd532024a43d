"""Debian's PostgreSQL and PgBouncer on TCP, for what the embedded server does without: TLS, passwords, a pooler."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import URL

from tests.conftest import TEST_ALL

USER = "postgres"  # whom Debian's packages make; neither program runs as root
START_TIMEOUT_S = 30.0


def program(name: str) -> str:
    """Its path; without it the test is skipped, under HPO_TEST_ALL=1 it fails."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = str(found[-1]) if found else shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        missing = f"{name} is not installed (Debian's postgresql, pgbouncer)"
        if TEST_ALL:
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@contextmanager
def open_folder() -> Iterator[Path]:
    """Which the servers' user can reach and owns."""
    folder = Path(tempfile.mkdtemp(prefix="hpo-server-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def give_away(*paths: Path) -> None:
    if os.getuid() == 0:
        for path in paths:
            shutil.chown(path, USER)


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """While a server with that port runs, as its own user."""
    user = pwd.getpwnam(USER).pw_uid if os.getuid() == 0 else None
    with subprocess.Popen(command, user=user, cwd="/", stdin=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, process)
            yield
        finally:
            process.send_signal(2)  # both take it for a fast end
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


@contextmanager
def postgres(folder: Path, rules: str, settings: dict[str, str]) -> Iterator[URL]:
    """A server with these lines of pg_hba.conf; its URL as its superuser, whom a socket lets in."""
    data, port = folder / "data", free_port()
    data.mkdir(mode=0o700)
    give_away(folder, data, *folder.iterdir())
    user = pwd.getpwnam(USER).pw_uid if os.getuid() == 0 else None
    initdb = [program("initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "-N"]
    subprocess.run(initdb, user=user, cwd="/", check=True, stdout=subprocess.DEVNULL)
    (data / "pg_hba.conf").write_text(f"local all all trust\n{rules}\n")
    given = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": str(folder), "fsync": "off"}
    options = [f"-c{name}={value}" for name, value in (given | settings).items()]
    url = URL.create("postgresql+psycopg2", "postgres", port=port, database="postgres", query={"host": str(folder)})
    with running([program("postgres"), "-D", str(data), *options], port):
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(psycopg2.OperationalError):  # it listens before it serves
                execute(url)
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield url


@contextmanager
def pgbouncer(folder: Path, server: URL, pool_size: int) -> Iterator[int]:
    """Debian's, in transaction mode; its port."""
    port, path = free_port(), folder / "pgbouncer.ini"
    users = folder / "users.txt"
    users.write_text('"postgres" ""\n"hpo_worker" ""\n')
    path.write_text(
        f"""[databases]
* = host={server.query["host"]} port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
"""
    )
    give_away(path, users)
    with running([program("pgbouncer"), "-q", str(path)], port):
        yield port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def execute(url: URL, *statements: str) -> None:
    connection = psycopg2.connect(host=url.query["host"], port=url.port, user="postgres", dbname=url.database)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.05)
