"""Who gets into the dashboard and how long, asked by hand: as a user, with a token, through a proxy."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.browser.served import FORM, PAGE, PASSWORD, PROXY, Place, Reply, Served, serving

NOTE = {"body": "mine", "version": 1_000_001}  # the next one of what `hpo` wrote

pytestmark = pytest.mark.browser


@pytest.fixture
def fresh(place: Place, access: Path) -> Iterator[Served]:
    """For whoever uses up its tries."""
    with serving(place.url, "--access", access) as served:
        yield served


def test_cookie_is_of_this_site_for_http_alone_and_of_half_a_day(writable: Served) -> None:
    set_cookie = writable.log_in("ben").headers["set-cookie"]
    pattern = rf"hpo_{writable.port}=[\w-]{{43}}; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"
    assert re.fullmatch(pattern, set_cookie)
    assert re.fullmatch(
        pattern + "; Secure", writable.log_in("ben", source=PROXY, X_Forwarded_Proto="https").headers["set-cookie"]
    )
    assert re.fullmatch(pattern, writable.log_in("ben", X_Forwarded_Proto="https").headers["set-cookie"])


@pytest.mark.parametrize("wanted", ["/dashboard/studies/1?a=b%20c&copy=1", "/api/studies", "/", "/csv/1"])
def test_login_leads_to_where_one_wanted_to_go(writable: Served, wanted: str) -> None:
    page = writable.ask("GET", wanted, headers=PAGE)
    shown = re.findall(r'name="next" value="(.*?)"', page.content.decode())
    form = urlencode({"user": "ben", "password": PASSWORD, "next": unescape(shown[0])})
    assert writable.ask("POST", "/login", form, FORM).headers["location"] == wanted


ELSEWHERE = ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil", "javascript:x", "evil.example"]
ELSEWHERE += [
    "/a\r\nX: y",
    "/a?\r\nSet-Cookie: a=b",
    "/\t/evil.example",
    "/%09/evil.example",
    "//evil.example/%2f..",
    "",
]


@pytest.mark.parametrize("wanted", [*ELSEWHERE, "/login", "/logout"])
def test_login_leads_nowhere_else(writable: Served, wanted: str) -> None:
    form = urlencode({"user": "ben", "password": PASSWORD, "next": wanted})
    reply = writable.ask("POST", "/login", form, FORM)
    assert (reply.status, reply.headers["location"]) == (303, "/")
    assert "x" not in reply.headers


def test_what_was_typed_comes_back_as_text(writable: Served) -> None:
    hostile = '"><script>alert(1)</script>$next'
    form = urlencode({"user": hostile, "password": "wrong password", "next": hostile})
    content = writable.ask("POST", "/login", form, FORM | PAGE).content
    assert b"<script>" not in content
    assert b"&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;$next" in content


def test_wrong_user_and_wrong_password_are_told_alike(writable: Served) -> None:
    wrong = [("ben", "wrong password"), ("ben", ""), ("nobody", PASSWORD), ("", ""), ("ben", PASSWORD * 100)]
    for number, (user, password) in enumerate(
        [*wrong, ("ben\0", PASSWORD), ("Ben", PASSWORD), ("ben", f"{PASSWORD} ")]
    ):
        reply = writable.log_in(user, password, source=f"127.0.4.{number}")
        assert (reply.status, reply.reason) == (401, "Wrong user or password.")
        assert "set-cookie" not in reply.headers


def test_form_that_is_too_large_or_none_is_refused(writable: Served) -> None:
    assert writable.log_in("ben", "x" * 9000).status == 400
    assert writable.ask("POST", "/login", "&".join(f"a{number}=1" for number in range(99)), FORM).status == 400
    assert writable.ask("POST", "/login", "\xff\xfe=%ff", FORM).status == 401
    assert writable.ask("POST", "/login").status == 401
    assert writable.ask("GET", f"/login?{urlencode({'user': 'ben', 'password': PASSWORD})}").status == 401


def test_user_who_failed_ten_times_waits_wherever_the_next_try_comes_from(fresh: Served) -> None:
    for number in range(10):
        assert fresh.log_in("ben", "wrong password", source=f"127.0.1.{number}").status == 401
    reply = fresh.log_in("ben", source="127.0.2.1")
    assert reply.status == 429
    assert 1 <= int(reply.headers["retry-after"]) <= 31
    assert "set-cookie" not in reply.headers
    assert fresh.log_in("anna", source="127.0.2.1").status == 303
    page = fresh.ask("POST", "/login", urlencode({"user": "ben", "password": PASSWORD}), FORM | PAGE)
    assert (page.status, b"Too many failed attempts." in page.content) == (429, True)


def test_address_that_failed_ten_times_waits_whoever_it_says_it_is(fresh: Served) -> None:
    for number in range(10):
        assert fresh.log_in(f"user{number}", "wrong password").status == 401
    assert fresh.log_in("anna").status == 429
    assert fresh.log_in("anna", source="127.0.0.9").status == 303
    forwarded = [
        fresh.log_in("anna", source=PROXY, X_Forwarded_For=f"10.0.0.1, {seen}") for seen in ("127.0.0.1", "10.0.0.2")
    ]
    assert [reply.status for reply in forwarded] == [429, 303]
    assert fresh.log_in("anna", X_Forwarded_For="10.0.0.3").status == 429


def test_right_logins_use_up_no_tries(fresh: Served) -> None:
    assert {fresh.log_in("ben").status for _ in range(12)} == {303}


def test_many_logins_at_once_leave_the_others_their_answers(writable: Served) -> None:
    """Each hashes for a tenth of a second, in 64 MiB."""
    cookie, replies = writable.cookie_of("ben"), list[Reply]()

    def log_in(number: int) -> None:
        replies.append(writable.log_in(f"user{number}", source=f"127.0.3.{number}"))

    rush = [threading.Thread(target=log_in, args=(number,)) for number in range(30)]
    for thread in rush:
        thread.start()
    assert writable.ask("GET", "/api/studies", cookie=cookie).status == 200
    for thread in rush:
        thread.join()
    assert {reply.status for reply in replies} == {401, 503}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost:{port}"},
        {"Origin": "http://127.0.0.1:{port}.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_request_that_another_origin_makes_changes_nothing(
    writable: Served, place: Place, headers: dict[str, str]
) -> None:
    sent = {name: value.format(port=writable.port) for name, value in headers.items()}
    cookie, path = writable.cookie_of("anna"), f"/api/studies/{place.study._study_id}/note"
    assert writable.log_in("anna", **sent).status == 403
    assert writable.ask("POST", "/logout", headers=sent, cookie=cookie).status == 403
    assert writable.ask("PUT", path, NOTE, sent, cookie=cookie).status == 403
    assert writable.ask("PUT", path, NOTE, sent | {"X-Remote-User": "anna"}, source=PROXY).status == 403
    assert writable.ask("GET", "/api/studies", cookie=cookie).status == 200


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://127.0.0.1:{port}"}, {"Sec-Fetch-Site": "same-origin"}])
def test_request_of_its_own_pages_passes(writable: Served, headers: dict[str, str]) -> None:
    sent = {name: value.format(port=writable.port) for name, value in headers.items()}
    assert writable.log_in("anna", **sent).status == 303
    assert writable.ask("POST", "/logout", headers=sent, cookie=writable.cookie_of("anna")).status == 303


def test_names_of_the_access_file_are_served_with_any_port_or_none(writable: Served) -> None:
    cookie = writable.cookie_of("ben")
    ask = partial(writable.ask, "GET", "/api/studies", cookie=cookie)
    names = ["hpo.example.com", "HPO.example.com:8443", f"localhost:{writable.port}", f"[::1]:{writable.port}"]
    for host in names:
        assert ask(headers={"Host": host}).status == 200
    for host in (
        "hpo.example.com:",
        "hpo.example.com:x",
        "x.hpo.example.com",
        "hpo.example.com.evil.example",
        "localhost:1",
    ):
        assert ask(headers={"Host": host}).status == 421
    tls = {"Host": "hpo.example.com", "Origin": "https://hpo.example.com"}
    assert writable.ask("POST", "/logout", headers=tls, cookie=writable.cookie_of("ben")).status == 303


def test_logout_ends_the_session_of_that_browser_alone(writable: Served) -> None:
    one, other = writable.cookie_of("ben"), writable.cookie_of("ben")
    reply = writable.ask("POST", "/logout", cookie=one)
    assert (reply.status, reply.headers["location"]) == (303, "/")
    assert reply.headers["set-cookie"].startswith(f"hpo_{writable.port}=; Path=/; Max-Age=0;")
    assert writable.ask("GET", "/api/studies", cookie=one).status == 401
    assert writable.ask("GET", "/api/studies", cookie=other).status == 200
    assert writable.ask("GET", "/logout", cookie=other).status == 404  # a link or a picture logs nobody out
    assert writable.ask("POST", "/logout").status == 303


def test_login_ends_the_session_before_it(writable: Served) -> None:
    one = writable.cookie_of("ben")
    form = urlencode({"user": "anna", "password": PASSWORD})
    two = writable.ask("POST", "/login", form, FORM, cookie=one).cookie
    assert two != one
    assert writable.ask("GET", "/api/studies", cookie=one).status == 401
    assert writable.ask("GET", "/login", cookie=two).headers["location"] == "/"


def test_cookie_of_one_dashboard_is_none_of_another(writable: Served, fresh: Served) -> None:
    value = writable.cookie_of("ben").partition("=")[2]
    assert fresh.ask("GET", "/api/studies", cookie=f"hpo_{fresh.port}={value}").status == 401
    assert writable.ask("GET", "/api/studies", cookie=f"hpo_{fresh.port}={value}").status == 401


# By token


def test_token_lets_in_and_gives_the_rights_of_the_process(by_token: Served, place: Place) -> None:
    reply = by_token.ask("GET", f"/dashboard/studies/1?token={by_token.token}&numbers=1")
    assert (reply.status, reply.headers["location"]) == (303, "/dashboard/studies/1?numbers=1")
    assert by_token.ask("GET", "/api/studies", cookie=reply.cookie).status == 200
    trial, told = place.study.ask()._trial_id, {"state": "Fail"}
    assert by_token.ask("POST", f"/api/trials/{trial}/tell", told, cookie=reply.cookie).status == 204
    with serving(place.url) as read_only:
        assert read_only.ask("POST", f"/api/trials/{trial}/tell", told, cookie=read_only.cookie_of()).status == 403
        assert read_only.token != by_token.token
        assert read_only.ask("GET", f"/?token={by_token.token}").status == 401


def test_wrong_token_lets_nobody_in(by_token: Served, writable: Served) -> None:
    good = str(by_token.token)
    for token in ("", "x", good[:-1], good + "x", good.swapcase(), "%00", "%ff", "None"):
        assert by_token.ask("GET", f"/?token={token}").status == 401
        assert by_token.ask("POST", "/login", urlencode({"password": token}), FORM).status in (401, 429)
    assert by_token.ask("HEAD", f"/?token={good}").status == 401
    assert by_token.ask("POST", f"/api/studies?token={good}", {}).status == 401
    assert writable.ask("GET", "/?token=None").status == 401
    assert writable.ask("GET", "/?token=").status == 401


# Through a proxy


def test_proxy_says_who_it_is(writable: Served, place: Place) -> None:
    ask = partial(writable.ask, source=PROXY)
    page = ask("GET", "/dashboard", headers=PAGE | {"X-Remote-User": "carla"})
    assert b"<b>carla</b>read only" in page.content
    assert b"Log out" not in page.content  # that is up to the proxy
    path = f"/api/studies/{place.study._study_id}/{place.finished}/note"
    for user, status in (("carla", 403), ("ben", 403), ("anna", 204)):
        assert ask("PUT", path, NOTE, {"X-Remote-User": user}).status == status
    page = ask("GET", "/dashboard", headers={"X-Remote-User": "jörg".encode().decode("latin-1")})
    assert "<b>jörg</b>".encode() in page.content


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.4", "127.0.0.50"])
def test_header_from_any_other_address_is_ignored(writable: Served, source: str) -> None:
    assert writable.ask("GET", "/api/studies", headers={"X-Remote-User": "anna"}, source=source).status == 401
    sent = {"X-Remote-User": "anna", "X-Forwarded-For": PROXY}
    assert writable.ask("GET", "/api/studies", headers=sent, source=source).status == 401


@pytest.mark.parametrize("name", ["", " ", "anna, ben", "anna,", "an na", "a" * 65, "anna\x7f"])
def test_empty_or_odd_name_of_the_proxy_is_nobody(writable: Served, name: str) -> None:
    assert writable.ask("GET", "/api/studies", headers={"X-Remote-User": name}, source=PROXY).status in (400, 401)


def test_name_of_the_proxy_is_shown_as_text(writable: Served) -> None:
    page = writable.ask("GET", "/dashboard", headers={"X-Remote-User": "<img/src=x/onerror=alert(1)>"}, source=PROXY)
    assert b"<img" not in page.content
    assert b"&lt;img/src=x/onerror=alert(1)&gt;" in page.content


def test_password_logs_in_through_the_proxy_too(writable: Served) -> None:
    cookie = writable.log_in("ben", source=PROXY).cookie
    assert writable.ask("GET", "/api/studies", cookie=cookie, source=PROXY).status == 200


def test_log_says_who_logged_in_and_what_was_changed_but_no_secret(place: Place, access: Path) -> None:
    with serving(place.url, "--access", access, "--write") as served:
        cookie, trial = served.cookie_of("anna"), place.study.ask()._trial_id
        served.log_in("a password in the wrong field", "wrong password")
        served.ask("POST", f"/api/trials/{trial}/tell", {"state": "Fail"}, cookie=cookie)
        served.process.terminate()
        log = served.process.stdout.read().splitlines()
    assert [line.split(" ", 2)[2] for line in log] == [
        "login from 127.0.0.1 as anna: right",
        "login from 127.0.0.1 as nobody we know: wrong",
        f"anna: POST /api/trials/{trial}/tell: 204 No Content",
    ]
