"""Who gets into the dashboard and how: with a token, as a user, through a proxy; in a real browser, and by hand."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import optuna
import pytest
from sqlalchemy import URL

from tests.browser.served import ACCESS, FORM, HASHED, PAGE, PASSWORD, Reply, Served, serving
from tests.conftest import TEMPLATE, _execute
from tests.recorded import make_recorded_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAME = "a-study-whose-name-is-as-long-as-a-name-may-be-and-so-is-this-one"[:64]
PROXY = "127.0.0.5"  # as ACCESS has it; a Linux box has all of 127.0.0.0/8
LONG = "christopher.longname@example.com"

pytestmark = pytest.mark.browser
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def url(server_url: URL) -> Iterator[URL]:
    _execute(server_url, f"CREATE DATABASE logins TEMPLATE {TEMPLATE}")
    yield server_url.set(database="logins")
    _execute(server_url, "DROP DATABASE logins WITH (FORCE)")


@pytest.fixture(scope="module")
def study(url: URL) -> optuna.Study:
    return make_recorded_study(url, NAME)[0]


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("access") / "access.yaml"
    path.write_text(ACCESS.replace("proxy:", f'  {LONG}: {{password: "{HASHED}"}}\nproxy:'))
    return path


@pytest.fixture(scope="module")
def site(url: URL, study: optuna.Study, access: Path) -> Iterator[Served]:
    with serving(url, "--access", access, "--write") as served:
        yield served


@pytest.fixture(scope="module")
def by_token(url: URL, study: optuna.Study) -> Iterator[Served]:
    with serving(url, "--write") as served:
        yield served


@pytest.fixture
def fresh(url: URL, access: Path) -> Iterator[Served]:
    """For whoever uses up its tries."""
    with serving(url, "--access", access) as served:
        yield served


@pytest.fixture(scope="module")
def browser(chromium: dict[str, Any]) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as library:
        yield library.chromium.launch(**chromium)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """open_page(width, **options): in a profile of its own; no script may fail, and no policy be broken."""
    complaints, contexts = list[str](), list[Any]()

    def make(width: int, **options: Any) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page: Page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    refused = "Failed to load resource: the server responded with a status of 401"  # of the login page itself
    assert [text for text in complaints if not text.startswith(refused)] == []


# In a browser


@pytest.mark.parametrize("width", [1400, 400])
def test_person_logs_in_sees_the_study_logs_out_and_the_old_cookie_is_worth_nothing(
    site: Served, study: optuna.Study, open_page: Open, width: int
) -> None:
    page, path = open_page(width), f"/dashboard/studies/{study._study_id}/trials?numbers=1"
    page.goto(site.origin + path)
    page.get_by_label("User").fill("ben")
    page.get_by_label("Password").fill(f"not {PASSWORD}")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("alert").get_by_text("Wrong user or password.").wait_for()
    assert page.get_by_label("User").input_value() == "ben"
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Trial 1").wait_for()
    assert page.url == site.origin + path
    page.locator("#hpo-user", has_text="ben").get_by_text("read only").wait_for()
    (cookie,) = page.context.cookies()
    old = f"{cookie['name']}={cookie['value']}"
    assert site.ask("GET", "/api/studies", cookie=old).status == 200
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("User").wait_for()
    assert page.context.cookies() == []
    assert site.ask("GET", "/api/studies", cookie=old).status == 401
    page.goto(site.origin + path)
    page.get_by_label("User").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_login_page_is_legible_and_ready_for_typing(site: Served, open_page: Open, width: int, scheme: str) -> None:
    page = open_page(width, color_scheme=scheme)
    page.goto(site.origin)
    assert page.evaluate("document.activeElement.id") == "user"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.documentElement.lang") == "en"
    for name, kind in (("user", "username"), ("password", "current-password")):
        assert page.locator(f"#{name}").get_attribute("autocomplete") == kind
        assert page.locator(f"label[for={name}]").is_visible()
    for shown in ("h1", "label", "input", "button"):
        assert contrast(page, shown) >= 4.5
    page.keyboard.type("ben")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "password"


@pytest.mark.parametrize("width", [1400, 400])
def test_control_covers_nothing_of_the_dashboard(
    site: Served, study: optuna.Study, open_page: Open, width: int
) -> None:
    page = open_page(width)
    enter(page, site, LONG)
    study_pages = [f"/studies/{study._study_id}{end}" for end in ("", "/trials", "/note", "/analytics")]
    for path in ("", *study_pages):
        page.goto(f"{site.origin}/dashboard{path}")
        page.locator("header").wait_for()
        for drawer in ("shut", "open"):
            assert page.get_by_role("button", name="Log out").is_visible()
            assert page.locator("#hpo-user").get_by_text("read only").is_visible()
            assert page.evaluate(COVERED) == []
            if drawer == "shut":
                page.locator("header button").first.click()
                page.get_by_text("Dark Mode").wait_for()


def test_link_from_elsewhere_finds_whoever_is_logged_in(site: Served, study: optuna.Study, open_page: Open) -> None:
    """The browser sends no cookie along with such a link; the login page makes way for the page itself."""
    page, path = open_page(1400), f"/dashboard/studies/{study._study_id}"
    enter(page, site, "ben")
    with elsewhere(f'<a href="{site.origin}{path}">the study</a>') as other:
        page.goto(other)
        page.get_by_role("link", name="the study").click()
        page.locator("#hpo-user").wait_for()
        assert page.url == site.origin + path


def test_page_of_another_origin_changes_and_reads_nothing(site: Served, study: optuna.Study, browser: Browser) -> None:
    """Not even one of another port of this machine, to which the browser does send the cookie."""
    page = browser.new_page()
    enter(page, site, "anna")
    data = f"{site.origin}/api/studies/{study._study_id}"
    form = f'<form method="post" action="{site.origin}/logout"><button>a prize</button></form>'
    with elsewhere(form, host="127.0.0.1") as other:
        page.goto(other)
        page.get_by_role("button", name="a prize").click()
        page.get_by_text("a page of another origin may change nothing here").wait_for()
        page.goto(other)
        assert page.evaluate(FETCHED, [data, {"mode": "no-cors", "credentials": "include"}]) == "TypeError"
        assert page.evaluate(FETCHED, [data, {"credentials": "include"}]) == "TypeError"
        assert page.evaluate(FETCHED, [data, {"method": "DELETE", "credentials": "include"}]) == "TypeError"
        framed = (
            "url => new Promise(done => { const f = document.createElement('iframe'); f.src = url; f.onload = () => {"
        )
        framed += " try { done(String(f.contentDocument)) } catch (e) { done(e.name) } }; document.body.append(f) })"
        assert page.evaluate(framed, f"{site.origin}/dashboard") in ("null", "SecurityError")
    page.goto(f"{site.origin}/dashboard")
    page.locator("#hpo-user", has_text="anna").wait_for()
    assert study.get_trials()
    page.close()


def test_token_in_the_address_opens_the_page_and_is_gone_from_it(
    by_token: Served, study: optuna.Study, open_page: Open
) -> None:
    page = open_page(1400)
    page.goto(f"{by_token.origin}/?token={by_token.token}")
    page.get_by_text(NAME).wait_for()
    assert str(by_token.token) not in page.url
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token").fill(str(by_token.token))
    page.get_by_role("button", name="Log in").click()
    page.get_by_text(NAME).wait_for()


# By hand


def test_cookie_is_of_this_site_for_http_alone_and_of_half_a_day(site: Served) -> None:
    set_cookie = site.log_in("ben").headers["set-cookie"]
    pattern = rf"hpo_{site.port}=[\w-]{{43}}; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"
    assert re.fullmatch(pattern, set_cookie)
    assert re.fullmatch(
        pattern + "; Secure", site.log_in("ben", source=PROXY, X_Forwarded_Proto="https").headers["set-cookie"]
    )
    assert re.fullmatch(pattern, site.log_in("ben", X_Forwarded_Proto="https").headers["set-cookie"])


@pytest.mark.parametrize("place", ["/dashboard/studies/1?a=b%20c&copy=1", "/api/studies", "/", "/csv/1"])
def test_login_leads_to_where_one_wanted_to_go(site: Served, place: str) -> None:
    page = site.ask("GET", place, headers=PAGE)
    shown = re.findall(r'name="next" value="(.*?)"', page.content.decode())
    form = urlencode({"user": "ben", "password": PASSWORD, "next": unescape(shown[0])})
    assert site.ask("POST", "/login", form, FORM).headers["location"] == place


ELSEWHERE = ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil", "javascript:x", "evil.example"]
ELSEWHERE += [
    "/a\r\nX: y",
    "/a?\r\nSet-Cookie: a=b",
    "/\t/evil.example",
    "/%09/evil.example",
    "//evil.example/%2f..",
    "",
]


@pytest.mark.parametrize("place", [*ELSEWHERE, "/login", "/logout"])
def test_login_leads_nowhere_else(site: Served, place: str) -> None:
    form = urlencode({"user": "ben", "password": PASSWORD, "next": place})
    reply = site.ask("POST", "/login", form, FORM)
    assert (reply.status, reply.headers["location"]) == (303, "/")
    assert "x" not in reply.headers


def test_what_was_typed_comes_back_as_text(site: Served) -> None:
    hostile = '"><script>alert(1)</script>$next'
    form = urlencode({"user": hostile, "password": "wrong password", "next": hostile})
    content = site.ask("POST", "/login", form, FORM | PAGE).content
    assert b"<script>" not in content
    assert b"&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;$next" in content


def test_wrong_user_and_wrong_password_are_told_alike(site: Served) -> None:
    wrong = [("ben", "wrong password"), ("ben", ""), ("nobody", PASSWORD), ("", ""), ("ben", PASSWORD * 100)]
    for number, (user, password) in enumerate(
        [*wrong, ("ben\0", PASSWORD), ("Ben", PASSWORD), ("ben", f"{PASSWORD} ")]
    ):
        reply = site.log_in(user, password, source=f"127.0.4.{number}")
        assert (reply.status, reply.reason) == (401, "Wrong user or password.")
        assert "set-cookie" not in reply.headers


def test_form_that_is_too_large_or_none_is_refused(site: Served) -> None:
    assert site.log_in("ben", "x" * 9000).status == 400
    assert site.ask("POST", "/login", "&".join(f"a{number}=1" for number in range(99)), FORM).status == 400
    assert site.ask("POST", "/login", "\xff\xfe=%ff", FORM).status == 401
    assert site.ask("POST", "/login").status == 401
    assert site.ask("GET", f"/login?{urlencode({'user': 'ben', 'password': PASSWORD})}").status == 401


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


def test_many_logins_at_once_leave_the_others_their_answers(site: Served) -> None:
    """Each hashes for a tenth of a second, in 64 MiB."""
    cookie, replies = site.cookie_of("ben"), list[Reply]()

    def log_in(number: int) -> None:
        replies.append(site.log_in(f"user{number}", source=f"127.0.3.{number}"))

    rush = [threading.Thread(target=log_in, args=(number,)) for number in range(30)]
    for thread in rush:
        thread.start()
    assert site.ask("GET", "/api/studies", cookie=cookie).status == 200
    for thread in rush:
        thread.join()
    assert {reply.status for reply in replies} == {401, 503}


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
    site: Served, study: optuna.Study, headers: dict[str, str]
) -> None:
    sent = {name: value.format(port=site.port) for name, value in headers.items()}
    cookie = site.cookie_of("anna")
    assert site.log_in("anna", **sent).status == 403
    assert site.ask("POST", "/logout", headers=sent, cookie=cookie).status == 403
    note = {"body": "mine", "version": 1}
    assert site.ask("PUT", f"/api/studies/{study._study_id}/note", note, sent, cookie=cookie).status == 403
    assert (
        site.ask(
            "PUT", f"/api/studies/{study._study_id}/note", note, sent | {"X-Remote-User": "anna"}, source=PROXY
        ).status
        == 403
    )
    assert site.ask("GET", "/api/studies", cookie=cookie).status == 200
    assert not any(key.startswith("dashboard:note") for key in study._storage.get_study_system_attrs(study._study_id))


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://127.0.0.1:{port}"}, {"Sec-Fetch-Site": "same-origin"}])
def test_request_of_its_own_pages_passes(site: Served, headers: dict[str, str]) -> None:
    sent = {name: value.format(port=site.port) for name, value in headers.items()}
    assert site.log_in("anna", **sent).status == 303
    assert site.ask("POST", "/logout", headers=sent, cookie=site.cookie_of("anna")).status == 303


def test_names_of_the_access_file_are_served_with_any_port_or_none(site: Served) -> None:
    cookie = site.cookie_of("ben")
    ask = partial(site.ask, "GET", "/api/studies", cookie=cookie)
    names = ["hpo.example.com", "HPO.example.com:8443", f"localhost:{site.port}", f"[::1]:{site.port}"]
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
    assert site.ask("POST", "/logout", headers=tls, cookie=site.cookie_of("ben")).status == 303


def test_logout_ends_the_session_of_that_browser_alone(site: Served) -> None:
    one, other = site.cookie_of("ben"), site.cookie_of("ben")
    reply = site.ask("POST", "/logout", cookie=one)
    assert (reply.status, reply.headers["location"]) == (303, "/")
    assert reply.headers["set-cookie"].startswith(f"hpo_{site.port}=; Path=/; Max-Age=0;")
    assert site.ask("GET", "/api/studies", cookie=one).status == 401
    assert site.ask("GET", "/api/studies", cookie=other).status == 200
    assert site.ask("GET", "/logout", cookie=other).status == 404  # a link or a picture logs nobody out
    assert site.ask("POST", "/logout").status == 303


def test_login_ends_the_session_before_it(site: Served) -> None:
    one = site.cookie_of("ben")
    form = urlencode({"user": "anna", "password": PASSWORD})
    two = site.ask("POST", "/login", form, FORM, cookie=one).cookie
    assert two != one
    assert site.ask("GET", "/api/studies", cookie=one).status == 401
    assert site.ask("GET", "/login", cookie=two).headers["location"] == "/"


def test_cookie_of_one_dashboard_is_none_of_another(site: Served, fresh: Served) -> None:
    value = site.cookie_of("ben").partition("=")[2]
    assert fresh.ask("GET", "/api/studies", cookie=f"hpo_{fresh.port}={value}").status == 401
    assert site.ask("GET", "/api/studies", cookie=f"hpo_{fresh.port}={value}").status == 401


# By token


def test_token_lets_in_and_gives_the_rights_of_the_process(by_token: Served, url: URL, study: optuna.Study) -> None:
    reply = by_token.ask("GET", f"/dashboard/studies/1?token={by_token.token}&numbers=1")
    assert (reply.status, reply.headers["location"]) == (303, "/dashboard/studies/1?numbers=1")
    assert by_token.ask("GET", "/api/studies", cookie=reply.cookie).status == 200
    trial, told = study.ask()._trial_id, {"state": "Fail"}
    assert by_token.ask("POST", f"/api/trials/{trial}/tell", told, cookie=reply.cookie).status == 204
    with serving(url) as read_only:
        assert read_only.ask("POST", f"/api/trials/{trial}/tell", told, cookie=read_only.cookie_of()).status == 403
        assert read_only.token != by_token.token
        assert read_only.ask("GET", f"/?token={by_token.token}").status == 401


def test_wrong_token_lets_nobody_in(by_token: Served, site: Served) -> None:
    good = str(by_token.token)
    for token in ("", "x", good[:-1], good + "x", good.swapcase(), "%00", "%ff", "None"):
        assert by_token.ask("GET", f"/?token={token}").status == 401
        assert by_token.ask("POST", "/login", urlencode({"password": token}), FORM).status in (401, 429)
    assert by_token.ask("HEAD", f"/?token={good}").status == 401
    assert by_token.ask("POST", f"/api/studies?token={good}", {}).status == 401
    assert site.ask("GET", "/?token=None").status == 401
    assert site.ask("GET", "/?token=").status == 401


# Through a proxy


def test_proxy_says_who_it_is(site: Served, study: optuna.Study) -> None:
    ask = partial(site.ask, source=PROXY)
    page = ask("GET", "/dashboard", headers=PAGE | {"X-Remote-User": "carla"})
    assert b"<b>carla</b>read only" in page.content
    assert b"Log out" not in page.content  # that is up to the proxy
    note = {"body": "of the proxy", "version": 1}
    path = f"/api/studies/{study._study_id}/{study.get_trials()[0]._trial_id}/note"
    for user, status in (("carla", 403), ("ben", 403), ("anna", 204)):
        assert ask("PUT", path, note, {"X-Remote-User": user}).status == status
    assert (
        b"<b>j\xc3\xb6rg</b>"
        in ask("GET", "/dashboard", headers={"X-Remote-User": "jörg".encode().decode("latin-1")}).content
    )


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.4", "127.0.0.50"])
def test_header_from_any_other_address_is_ignored(site: Served, source: str) -> None:
    assert site.ask("GET", "/api/studies", headers={"X-Remote-User": "anna"}, source=source).status == 401
    sent = {"X-Remote-User": "anna", "X-Forwarded-For": PROXY}
    assert site.ask("GET", "/api/studies", headers=sent, source=source).status == 401


@pytest.mark.parametrize("name", ["", " ", "anna, ben", "anna,", "an na", "a" * 65, "anna\x7f"])
def test_empty_or_odd_name_of_the_proxy_is_nobody(site: Served, name: str) -> None:
    assert site.ask("GET", "/api/studies", headers={"X-Remote-User": name}, source=PROXY).status in (400, 401)


def test_name_of_the_proxy_is_shown_as_text(site: Served) -> None:
    page = site.ask("GET", "/dashboard", headers={"X-Remote-User": "<img/src=x/onerror=alert(1)>"}, source=PROXY)
    assert b"<img" not in page.content
    assert b"&lt;img/src=x/onerror=alert(1)&gt;" in page.content


def test_password_logs_in_through_the_proxy_too(site: Served) -> None:
    cookie = site.log_in("ben", source=PROXY).cookie
    assert site.ask("GET", "/api/studies", cookie=cookie, source=PROXY).status == 200


def test_log_says_who_logged_in_and_what_was_changed_but_no_secret(url: URL, study: optuna.Study, access: Path) -> None:
    with serving(url, "--access", access, "--write") as served:
        cookie, trial = served.cookie_of("anna"), study.ask()._trial_id
        served.log_in("a password in the wrong field", "wrong password")
        served.ask("POST", f"/api/trials/{trial}/tell", {"state": "Fail"}, cookie=cookie)
        served.process.terminate()
        log = served.process.stdout.read().splitlines()
    assert [line.split(" ", 2)[2] for line in log] == [
        "login from 127.0.0.1 as anna: right",
        "login from 127.0.0.1 as nobody we know: wrong",
        f"anna: POST /api/trials/{trial}/tell: 204 No Content",
    ]


def enter(page: Page, site: Served, user: str) -> None:
    page.goto(site.origin)
    page.get_by_label("User").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.locator("#hpo-user").wait_for()


FETCHED = "([url, options]) => fetch(url, options).then(() => 'fetched', error => error.name)"
# What of the dashboard can be used and lies, in part, under the control.
COVERED = """() => {
    const ours = [...document.querySelectorAll('#hpo-user > *')].map(node => node.getBoundingClientRect());
    const kinds = '#dashboard :is('
        + 'a, button, input, select, [role=button], [role=combobox], header .MuiTypography-root)';
    const usable = document.querySelectorAll(kinds);
    const meets = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    return [...usable].filter(node => { const box = node.getBoundingClientRect();
        return box.width && ours.some(one => meets(one, box)); }).map(node => node.outerHTML);
}"""
CONTRAST = """node => {
    const parts = text => text.match(/[\\d.]+/g).map(Number);
    const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = rgb => rgb.slice(0, 3).map(v => linear(v / 255))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    let behind = node;
    while (parts(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const both = [light(parts(getComputedStyle(node).color)), light(parts(getComputedStyle(behind).backgroundColor))];
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""


def contrast(page: Page, selector: str) -> float:
    return float(page.locator(selector).first.evaluate(CONTRAST))


@contextmanager
def elsewhere(html: str, host: str = "localhost") -> Iterator[str]:
    """A page of another site, or of another port of this one."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
