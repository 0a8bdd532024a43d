"""Ways around the gate, as far as we know them, and what every answer looks like."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import URL

from hpo.study import ours
from storage.artifacts import PostgresArtifacts
from tests.browser.served import FORM, METHODS, PAGE, READS, Place, Served, serving
from tests.recorded import make_recorded_study

ODD_PATHS = ["//api/studies", "/login/../api/studies", "/login/%2e%2e/api/studies", "/login%2f..%2fapi/studies"]
ODD_PATHS += ["/login/", "/logout/", "/LOGIN", "/login;/api/studies", "/static/../api/studies", "/./api/studies"]
ODD_PATHS += [
    "/api//studies",
    "/api/studies/",
    "/api/studies%00",
    "/api/studi%FFes",
    "/api/studies%3f",
    "/api/studies#x",
]
ODD_PATHS += [
    "/static/%2e%2e/index.html",
    "/static/..%2f..%2f_app.py",
    "/static//etc/passwd",
    "/static/%5c..%5cindex.html",
]
HIDDEN = ["/rename/", "/ren%FFame", "%2frename", "/./rename", "/note/../rename", "/rename%3fnote", "/%72ename"]
HIDDEN += ["//rename", "/rename%0a", "/note%0a/../rename", "/1/note/../../rename"]
SHELL = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "same-origin"}
SHELL |= {"cross-origin-opener-policy": "same-origin", "cross-origin-resource-policy": "same-origin"}

NEW = {"study_name": "new", "directions": ["minimize"]}

pytestmark = pytest.mark.browser


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("method", METHODS)
def test_odd_path_does_not_lead_past_the_login(writable: Served, method: str) -> None:
    for path in ODD_PATHS:
        assert (path, writable.ask(method, path, NEW).status) == (path, 401)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("method", [method for method in METHODS if method not in READS])
def test_odd_path_does_not_lead_to_what_may_not_be_written(place: Place, writable: Served, method: str) -> None:
    cookie, study = writable.cookie_of("anna"), f"/api/studies/{place.study._study_id}"
    paths = [study + end for end in HIDDEN] + [f"/{study}/rename", "/api/studi%FFes", "/api/studies/"]
    for path in paths:
        assert writable.ask(method, path, NEW, cookie=cookie).status in (403, 404)


@pytest.mark.usefixtures("unchanged")
def test_odd_path_does_not_lead_to_other_files_or_to_a_file_as_a_page(place: Place, writable: Served) -> None:
    cookie, file = writable.cookie_of("anna"), f"/{place.study._study_id}/{place.file}"
    for path in ("/static/../index.html", "/static/%2e%2e/_app.py", "/static/..%2f..%2fetc%2fpasswd", "/static/a%5cb"):
        assert writable.ask("GET", path, cookie=cookie).status in (403, 404)
    for path in (f"/artif%FFacts{file}", f"/artifacts/{file}", f"/./artifacts{file}", f"/artifacts{file}%0a"):
        assert writable.ask("GET", path, cookie=cookie).status == 404
    for path in (f"/artifacts{file}", f"/artifacts{file}/", f"/%61rtifacts{file}", f"//artifacts{file}"):
        headers = writable.ask("GET", path, cookie=cookie).headers
        assert headers["content-disposition"] == "attachment"
        assert headers["content-type"] == "application/octet-stream"
        assert headers["content-security-policy"].endswith("sandbox")


@pytest.mark.usefixtures("unchanged")
def test_header_that_comes_twice_or_oddly_helps_nobody(writable: Served) -> None:
    good, cookie = f"127.0.0.1:{writable.port}", writable.cookie_of("anna")
    for hosts in (
        (good, "evil.example"),
        ("evil.example", good),
        (good, good),
        (),
        ("",),
        (f"{good}.",),
        (f"{good}@x",),
    ):
        assert with_headers(writable, [("Host", host) for host in hosts] + [("Cookie", cookie)]) == 421
    assert with_headers(writable, [("Host", good), ("Cookie", cookie)]) == 200
    assert with_headers(writable, [("Host", good), ("Cookie", "a=1"), ("Cookie", cookie)]) == 401
    assert with_headers(writable, [("Host", good), ("Cookie", f"hpo_{writable.port}=x; {cookie}")]) == 200
    for name in ("X-Remote-User", "X_Remote_User", "X-Forwarded-User", "REMOTE_USER", "Remote-User", "Authorization"):
        assert with_headers(writable, [("Host", good), (name, "anna")]) == 401
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-Ip", "Client-Ip"):
        assert with_headers(writable, [("Host", good), (name, "127.0.0.5"), ("X-Remote-User", "anna")]) == 401
    for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
        assert with_headers(writable, [("Host", good), ("Cookie", cookie), (name, "DELETE")]) == 200


@pytest.mark.usefixtures("unchanged")
def test_request_for_another_server_is_refused(writable: Served) -> None:
    """The name in its first line may be another than in its Host."""
    cookie, host = writable.cookie_of("anna"), f"127.0.0.1:{writable.port}"
    for target in (
        "http://evil.example/api/studies",
        f"http://{host}/api/studies",
        "*",
        "evil.example:80",
        "api/studies",
    ):
        sent = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
        assert writable.raw(sent.encode()).split()[1] == b"400"
    for version in ("HTTP/1.0", "HTTP/0.9", ""):
        sent = f"GET /api/studies {version}\r\n\r\n"
        assert writable.raw(sent.encode()).split()[1] in (b"421", b"400")


@pytest.mark.usefixtures("unchanged")
def test_request_hidden_behind_another_is_refused_too(place: Place, writable: Served) -> None:
    host, inner = (
        f"127.0.0.1:{writable.port}",
        f"DELETE /api/studies/{place.study._study_id} HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    start = f"POST /login HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(inner)}\r\n"
    for more in ("", "Transfer-Encoding: chunked\r\n", f"Content-Length: {len(inner)}\r\n"):
        reply = writable.raw(f"{start}{more}\r\n{inner}".encode())
        codes = {int(code) for code in re.findall(rb"HTTP/1\.[01] (\d+)", reply)}
        assert codes
        assert codes <= {400, 401, 421}


def _in(url: URL, statement: str) -> None:
    with closing(psycopg2.connect(host=url.query["host"], user="postgres", dbname=url.database)) as connection:
        connection.cursor().execute(statement)
        connection.commit()


def with_headers(site: Served, headers: list[tuple[str, str]]) -> int:
    """The status of a GET of all studies with these headers alone."""
    with closing(HTTPConnection("127.0.0.1", site.port, timeout=10)) as connection:
        connection.putrequest("GET", "/api/studies", skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        return connection.getresponse().status


@pytest.mark.usefixtures("unchanged")
def test_headers_are_on_every_kind_of_answer(place: Place, writable: Served) -> None:
    study, cookie = place.study._study_id, writable.cookie_of("anna")
    asked = {
        "login page": (401, writable.ask("GET", "/", headers=PAGE)),
        "refusal": (401, writable.ask("GET", "/api/studies")),
        "wrong password": (401, writable.log_in("ben", "wrong password")),
        "redirect": (303, writable.log_in("ben")),
        "first page": (302, writable.ask("GET", "/", cookie=cookie)),
        "page": (200, writable.ask("GET", f"/dashboard/studies/{study}", headers=PAGE, cookie=cookie)),
        "data": (200, writable.ask("GET", f"/api/studies/{study}", cookie=cookie)),
        "head": (200, writable.ask("HEAD", f"/api/studies/{study}", cookie=cookie)),
        "table": (200, writable.ask("GET", f"/csv/{study}", cookie=cookie)),
        "program": (200, writable.ask("GET", "/static/bundle.js", cookie=cookie)),
        "file": (200, writable.ask("GET", f"/artifacts/{study}/{place.file}", cookie=cookie)),
        "nothing": (404, writable.ask("GET", "/nothing", headers=PAGE, cookie=cookie)),
        "forbidden": (403, writable.ask("POST", "/api/studies", {}, cookie=cookie)),
        "no such method": (405, writable.ask("GET", f"/api/studies/{study}/note", cookie=cookie)),
        "other name": (421, writable.ask("GET", "/", headers={"Host": "evil.example"})),
        "too large": (413, writable.ask("POST", "/login", "x" * (257 << 10), FORM)),
        "long header": (431, writable.ask("GET", "/", headers={"X-Long": "x" * (33 << 10)})),
        "no HTTP": (400, writable.ask("GET", "/", headers={"Content-Length": "x"})),
    }
    for name, (status, reply) in asked.items():
        assert (name, reply.status) == (name, status)
        assert reply.headers.items() >= SHELL.items()
        assert not reply.headers.keys() & {"server", "access-control-allow-origin"}
        assert reply.headers["cache-control"] == ("private, no-cache" if name == "program" else "no-store")
        policy = reply.headers.get("content-security-policy", "frame-ancestors 'none'" * (status in (400, 413, 431)))
        assert "frame-ancestors 'none'" in policy
        assert b"Traceback" not in reply.content
    assert asked["file"][1].headers["content-security-policy"].endswith("sandbox")
    policy = asked["page"][1].headers["content-security-policy"]
    assert "script-src 'self' 'unsafe-eval';base-uri 'self';form-action 'self'" in policy
    assert "'unsafe-inline'" not in asked["login page"][1].headers["content-security-policy"]


def test_failure_is_one_line_in_the_log_and_a_sentence_to_the_client(database: URL, access: Path) -> None:
    make_recorded_study(database)
    with serving(database, "--access", access) as served:
        cookie = served.cookie_of("ben")
        _in(database, "ALTER TABLE public.studies RENAME TO hidden")
        replies = [served.ask("GET", path, cookie=cookie) for path in ("/csv/1", "/api/studies")]
        served.process.terminate()
        log = served.process.stdout.read().splitlines()
    assert [reply.status for reply in replies] == [500, 500]
    assert [reply.reason for reply in replies] == [
        "this failed; the log of `hpo dashboard` says why",
        "internal server error",
    ]
    assert replies[0].headers.items() >= SHELL.items()
    said = 'relation "public.studies" does not exist'
    assert [line.split(" ", 2)[2] for line in log] == [
        "login from 127.0.0.1 as ben: right",
        f"GET '/csv/1' failed: UndefinedTable: {said}",
        f"Exception: {said}",
    ]


def test_page_is_of_its_reader_and_never_half_or_old(place: Place, read_only: Served) -> None:
    ben = {"cookie": read_only.cookie_of("ben")}
    first = read_only.ask("GET", "/dashboard", headers=PAGE, **ben)
    assert b"<b>ben</b>read only" in first.content
    assert not first.headers.keys() & {"etag", "last-modified", "accept-ranges"}
    again = {"If-Modified-Since": "Fri, 31 Dec 2100 00:00:00 GMT", "Range": "bytes=0-9", "If-None-Match": "*"}
    assert read_only.ask("GET", "/dashboard", headers=PAGE | again, **ben).content == first.content
    assert read_only.ask("HEAD", "/dashboard", headers=PAGE, **ben).content == b""
    program = read_only.ask("GET", "/static/bundle.js", headers={"Accept-Encoding": "gzip"}, **ben)
    seen = {"If-None-Match": program.headers["etag"], "Accept-Encoding": "gzip"}
    assert read_only.ask("GET", "/static/bundle.js", headers=seen, **ben).status == 304
    assert read_only.ask("GET", "/static/bundle.js", headers=seen).status == 401


def test_browser_that_names_no_encoding_gets_the_program_too(read_only: Served) -> None:
    """By itself optuna-dashboard fails then."""
    sent = f"Host: 127.0.0.1:{read_only.port}\r\nCookie: {read_only.cookie_of('ben')}\r\nConnection: close\r\n\r\n"
    for path in ("/static/bundle.js", "/favicon.ico"):
        assert read_only.raw(f"GET {path} HTTP/1.1\r\n{sent}".encode()).startswith(b"HTTP/1.1 200 OK\r\n")


def test_silent_and_slow_connections_hold_up_nobody(place: Place, read_only: Served) -> None:
    """Of both kinds more than there are threads: they say nothing, or never read the large files that they ask for."""
    cookie, store = read_only.cookie_of("ben"), PostgresArtifacts(ours(place.study).ask, place.study._study_id)
    content = store.open_reader(place.file).read()
    store.write(place.file, BytesIO(bytes(16 << 20)))
    path = f"/artifacts/{place.study._study_id}/{place.file}"
    asks = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{read_only.port}\r\nCookie: {cookie}\r\n\r\n".encode()
    begins = f"POST /login HTTP/1.1\r\nHost: 127.0.0.1:{read_only.port}\r\nContent-Length: 99\r\n\r\nuser=".encode()
    with ExitStack() as stack:
        for words in (asks * 3, begins, b"GET / HT", b"") * 20:
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", read_only.port)))
            slow.sendall(words)
        assert read_only.ask("GET", "/api/studies", cookie=cookie).status == 200
        assert read_only.log_in("ben").status == 303
    store.write(place.file, BytesIO(content))
