"""TLS: settings of libpq in the URL pass through, and what cannot be trusted is refused in one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from sqlalchemy import URL

from tests.postgres.conftest import Run
from tests.servers import execute, open_folder, postgres

SECRET = "Kanarienpasswort"
RULES = """hostssl all hpo 127.0.0.1/32 scram-sha-256
hostssl all certified 127.0.0.1/32 cert
hostnossl all hpo 127.0.0.1/32 scram-sha-256"""


@dataclass(frozen=True)
class Servers:
    """One PostgreSQL for each certificate; URLs of the role hpo at 127.0.0.1, and files of the client."""

    urls: dict[str, URL]
    ca: Path
    other_ca: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    ca, other, client = trustme.CA(), trustme.CA(), tmp_path_factory.mktemp("client")
    certificates = {
        "good": ca.issue_cert("127.0.0.1", "localhost"),
        "other name": ca.issue_cert("db.example.org"),
        "expired": ca.issue_cert("127.0.0.1", not_after=datetime.now(UTC) - timedelta(days=1)),
        "plaintext": None,
    }
    ca.cert_pem.write_to_path(client / "ca.crt")
    other.cert_pem.write_to_path(client / "other.crt")
    own = ca.issue_cert("certified@example.org", common_name="certified")
    own.private_key_pem.write_to_path(client / "client.key")
    (client / "client.key").chmod(0o600)
    own.cert_chain_pems[0].write_to_path(client / "client.crt")
    with ExitStack() as stack:
        urls = {name: start_server(stack, ca, certificate) for name, certificate in certificates.items()}
        yield Servers(urls, client / "ca.crt", client / "other.crt", client / "client.crt", client / "client.key")


def start_server(stack: ExitStack, ca: trustme.CA, certificate: trustme.LeafCert | None) -> URL:
    folder = stack.enter_context(open_folder())
    settings = {}
    if certificate is not None:
        certificate.private_key_pem.write_to_path(folder / "server.key")
        (folder / "server.key").chmod(0o600)
        certificate.cert_chain_pems[0].write_to_path(folder / "server.crt")
        ca.cert_pem.write_to_path(folder / "ca.crt")
        files = {"ssl_key_file": "server.key", "ssl_cert_file": "server.crt", "ssl_ca_file": "ca.crt"}
        settings = {"ssl": "on"} | {name: str(folder / file) for name, file in files.items()}
    url = stack.enter_context(postgres(folder, RULES, settings))
    execute(
        url,
        f"CREATE ROLE hpo LOGIN CREATEROLE PASSWORD '{SECRET}'",
        "CREATE ROLE certified LOGIN SUPERUSER",
        "CREATE DATABASE hpo OWNER hpo",
    )
    return URL.create("postgresql", "hpo", SECRET, "127.0.0.1", url.port, "hpo")


@pytest.fixture
def verified(servers: Servers) -> Callable[..., URL]:
    """The URL of a server that must prove who it is; keywords are libpq's."""

    def url(name: str, **settings: str) -> URL:
        given = {"sslmode": "verify-full", "sslrootcert": str(servers.ca)} | settings
        return servers.urls[name].update_query_dict(given)

    return url


def test_server_that_proves_itself_is_worked_with(verified: Callable[..., URL], hpo: Run) -> None:
    made = hpo(verified("good"), "db", "init")
    assert made.returncode == 0, made.stdout
    doctor = hpo(verified("good"), "doctor")
    (line,) = [line for line in doctor.stdout.splitlines() if " TLS " in line]
    assert line.split() == ["ok", "TLS", "TLSv1.3,", "server", "verified"]


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ("other CA", "certificate verify failed"),
        ("other name", 'does not match host name "127.0.0.1"'),
        ("plaintext", "server does not support SSL, but SSL was required"),
        ("expired", "certificate verify failed"),
    ],
)
@pytest.mark.parametrize("command", [("status", "small"), ("worker", "small"), ("db", "upgrade"), ("dashboard",)])
def test_server_that_cannot_prove_itself_is_refused_in_a_sentence(
    verified: Callable[..., URL], servers: Servers, hpo: Run, server: str, reason: str, command: tuple[str, ...]
) -> None:
    other = {"sslrootcert": str(servers.other_ca)}
    url = verified("good", **other) if server == "other CA" else verified(server)
    done = hpo(url, *command)
    assert done.returncode == 78, done.stdout
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"hpo: PostgreSQL at 127.0.0.1:{url.port}/hpo cannot be reached: ")
    assert reason in line
    assert SECRET not in line


def test_certificate_of_a_client_lets_it_in_without_a_password(
    verified: Callable[..., URL], servers: Servers, hpo: Run
) -> None:
    own = {"sslcert": str(servers.certificate), "sslkey": str(servers.key)}
    certified = verified("good", **own).set(username="certified")
    certified = URL.create(
        certified.drivername, "certified", None, certified.host, certified.port, "hpo", certified.query
    )
    done = hpo(certified, "workers")
    assert done.returncode == 0, done.stdout
    without = certified.difference_update_query(["sslcert", "sslkey"])
    refused = hpo(without, "workers")
    assert (refused.returncode, len(refused.stdout.splitlines())) == (78, 1)


def test_connection_without_tls_is_pointed_out_by_the_doctor(servers: Servers, hpo: Run) -> None:
    done = hpo(servers.urls["plaintext"], "doctor")
    assert done.returncode == 0, done.stdout
    assert [line for line in done.stdout.splitlines() if " TLS " in line] == [
        "look    TLS         the connection is not encrypted"
    ]


def test_password_comes_from_a_file_and_stands_in_no_argument_or_environment(
    servers: Servers, verified: Callable[..., URL], tmp_path: Path
) -> None:
    url = verified("good")
    url = URL.create(url.drivername, "hpo", None, url.host, url.port, "hpo", url.query)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    (tmp_path / "pgpass").write_text(f"*:*:*:hpo:{SECRET}\n")
    (tmp_path / "pgpass").chmod(0o600)
    for given in ({"HPO_PASSWORD_FILE": str(tmp_path / "secret")}, {"PGPASSFILE": str(tmp_path / "pgpass")}):
        environment = {"PATH": "", "HOME": str(tmp_path), "HPO_STORAGE": str(url)} | given
        done = subprocess.run(
            [sys.executable, "-m", "hpo", "workers"], env=environment, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, SECRET in done.stdout + done.stderr) == (0, False), done.stderr
