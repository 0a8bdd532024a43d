"""A running `hpo dashboard`, a study that it shows, and what other programs than a browser ask it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import optuna
import psutil
import psycopg2
from optuna.artifacts import upload_artifact
from optuna.trial import Trial
from sqlalchemy import URL

from hpo.publish import publish
from hpo.study import ours
from storage.artifacts import PostgresArtifacts
from tests.recorded import make_recorded_study

REPOSITORY = Path(__file__).parents[2]
PASSWORD = "correct horse battery"
# Of PASSWORD, as `hpo dashboard-user` makes it.
HASHED = "$argon2id$v=19$m=65536,t=3,p=4$gH5SG9nJUapqHGz4nsvb6g$M1FAvhmxBaBt2mRfv39CZT2p+9HMJiPbIBsB3Uypo0Y"
LONG = "christopher.longname@example.com"
PROXY = "127.0.0.5"  # a Linux box has all of 127.0.0.0/8
ACCESS = f"""users:
  anna: {{password: "{HASHED}", write: true}}
  ben: {{password: "{HASHED}"}}
  {LONG}: {{password: "{HASHED}"}}
proxy: {{header: X-Remote-User, addresses: [{PROXY}]}}
hosts: [hpo.example.com]
"""
NAME = "a-study-whose-name-is-as-long-as-a-name-may-be-and-so-is-this-one"[:64]
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")
READS = ("GET", "HEAD")
PAGE = {"Accept": "text/html,application/xhtml+xml"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]  # by names in small letters
    content: bytes

    @property
    def reason(self) -> str:
        return str(json.loads(self.content)["reason"])

    @property
    def cookie(self) -> str:
        """As a browser sends it back."""
        return self.headers["set-cookie"].partition(";")[0]


@dataclass(frozen=True)
class Served:
    process: psutil.Popen
    port: int
    token: str | None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        cookie: str = "",
        source: str = "127.0.0.1",
    ) -> Reply:
        """`body`: text as it is, or what becomes JSON; `source`: the address it comes from."""
        sent = {"Cookie": cookie} if cookie else {}
        text = body if isinstance(body, str | None) else json.dumps(body)
        if not isinstance(body, str | None):
            sent["Content-Type"] = "application/json"
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60, source_address=(source, 0))) as connection:
            connection.request(method, path, text, sent | dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())

    def log_in(self, user: str, password: str = PASSWORD, source: str = "127.0.0.1", **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        form = urlencode({"user": user, "password": password})
        return self.ask("POST", "/login", form, FORM | named, source=source)

    def cookie_of(self, user: str | None = None) -> str:
        """None: of whoever holds the token."""
        reply = self.ask("GET", f"/?token={self.token}") if user is None else self.log_in(user)
        assert reply.status == 303, reply.content
        return reply.cookie

    def raw(self, request: bytes) -> bytes:
        """What comes back until the connection is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@contextmanager
def serving(url: URL, *options: str | Path) -> Iterator[Served]:
    """Once it has said where."""
    port = free_port()
    process = start(url, port, *options)
    line = process.stdout.readline()
    assert line.startswith(f"http://127.0.0.1:{port}/"), line + process.stdout.read()
    found = re.search(r"\?token=([\w-]{43})  \(", line)
    try:
        yield Served(process, port, found and found[1])
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()
        process.communicate()


def start(url: URL, port: int, *options: str | Path) -> psutil.Popen:
    return psutil.Popen(
        [sys.executable, "-m", "hpo", "dashboard", "--port", str(port), *map(str, options)],
        cwd=REPOSITORY,
        env=os.environ | {"HPO_STORAGE": url.render_as_string(hide_password=False)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def all_rows(url: URL) -> dict[str, list[str]]:
    """Of every table of ours and Optuna's, as text."""
    with closing(psycopg2.connect(host=url.query["host"], user="postgres", dbname=url.database)) as connection:
        cursor = connection.cursor()
        cursor.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname IN ('public', 'incident_hpo') ORDER BY 1"
        )
        tables = [str(name) for (name,) in cursor.fetchall()]
        found = dict[str, list[str]]()
        for name in tables:
            cursor.execute(f"SELECT t::text FROM {name} t ORDER BY 1")
            found[name] = [str(row) for (row,) in cursor.fetchall()]
        return found


@dataclass(frozen=True)
class Place:
    """A study with trials, notes and files."""

    url: URL
    study: optuna.Study
    running: int  # trial ids
    finished: int
    file: str
    file_of_trial: str


def make_place(url: URL, folder: Path, name: str = NAME) -> Place:
    study, _ = make_recorded_study(url, name)
    publish(study, "# Report", {}, "schema_version: 1\n")
    trial: Trial = study.ask()
    (folder / "file.html").write_text("<script>document.title = 'taken over'</script>")
    store = PostgresArtifacts(ours(study).ask, study._study_id)
    of_trial, of_study = (
        upload_artifact(artifact_store=store, file_path=str(folder / "file.html"), study_or_trial=to)
        for to in (trial, study)
    )
    return Place(url, study, trial._trial_id, study.get_trials()[0]._trial_id, of_study, of_trial)
