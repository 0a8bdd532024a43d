"""Who gets into the dashboard in a real browser, what they see there, and what other pages cannot do to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.served import LONG, NAME, PASSWORD, Place, Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
Open = Callable[..., "Page"]


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
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    refused = "Failed to load resource: the server responded with a status of 401"  # of the login page itself
    assert [text for text in complaints if not text.startswith(refused)] == []


@pytest.mark.parametrize("width", [1400, 400])
def test_person_logs_in_sees_the_study_logs_out_and_the_old_cookie_is_worth_nothing(
    writable: Served, place: Place, open_page: Open, width: int
) -> None:
    page, path = open_page(width), f"/dashboard/studies/{place.study._study_id}/trials?numbers=1"
    page.goto(writable.origin + path)
    page.get_by_label("User").fill("ben")
    page.get_by_label("Password").fill(f"not {PASSWORD}")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("alert").get_by_text("Wrong user or password.").wait_for()
    assert page.get_by_label("User").input_value() == "ben"
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Trial 1").wait_for()
    assert page.url == writable.origin + path
    page.locator("#hpo-user", has_text="ben").get_by_text("read only").wait_for()
    (cookie,) = page.context.cookies()
    old = f"{cookie['name']}={cookie['value']}"
    assert writable.ask("GET", "/api/studies", cookie=old).status == 200
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("User").wait_for()
    assert page.context.cookies() == []
    assert writable.ask("GET", "/api/studies", cookie=old).status == 401
    page.goto(writable.origin + path)
    page.get_by_label("User").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_login_page_is_legible_and_ready_for_typing(writable: Served, open_page: Open, width: int, scheme: str) -> None:
    page = open_page(width, color_scheme=scheme)
    page.goto(writable.origin)
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


@pytest.mark.parametrize("width", [1400, 700, 400])
def test_control_covers_nothing_of_the_dashboard(writable: Served, place: Place, open_page: Open, width: int) -> None:
    page = open_page(width)
    enter(page, writable, LONG)
    study_pages = [f"/studies/{place.study._study_id}{end}" for end in ("", "/trials", "/note", "/analytics")]
    for path in ("", *study_pages):
        page.goto(f"{writable.origin}/dashboard{path}")
        page.get_by_text(NAME).first.wait_for()
        for drawer in ("shut", "open"):
            assert page.get_by_role("button", name="Log out").is_visible()
            assert page.locator("#hpo-user").get_by_text("read only").is_visible()
            assert page.evaluate(COVERED) == []
            if drawer == "shut":
                page.locator("header button").first.click()
                page.get_by_text("Dark Mode").wait_for()


def test_link_from_elsewhere_finds_whoever_is_logged_in(writable: Served, place: Place, open_page: Open) -> None:
    """The browser sends no cookie along with such a link; the login page makes way for the page itself."""
    page, path = open_page(1400), f"/dashboard/studies/{place.study._study_id}"
    enter(page, writable, "ben")
    with elsewhere(f'<a href="{writable.origin}{path}">the study</a>') as other:
        page.goto(other)
        page.get_by_role("link", name="the study").click()
        page.locator("#hpo-user").wait_for()
        assert page.url == writable.origin + path


def test_page_of_another_origin_changes_and_reads_nothing(writable: Served, place: Place, browser: Browser) -> None:
    """Not even one of another port of this machine, to which the browser does send the cookie."""
    page = browser.new_page()
    enter(page, writable, "anna")
    data = f"{writable.origin}/api/studies/{place.study._study_id}"
    form = f'<form method="post" action="{writable.origin}/logout"><button>a prize</button></form>'
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
        assert page.evaluate(framed, f"{writable.origin}/dashboard") in ("null", "SecurityError")
    page.goto(f"{writable.origin}/dashboard")
    page.locator("#hpo-user", has_text="anna").wait_for()
    assert place.study.get_trials()
    page.close()


def test_token_in_the_address_opens_the_page_and_is_gone_from_it(
    by_token: Served, place: Place, open_page: Open
) -> None:
    page = open_page(1400)
    page.goto(f"{by_token.origin}/?token={by_token.token}")
    page.get_by_text(NAME).wait_for()
    assert str(by_token.token) not in page.url
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token").fill(str(by_token.token))
    page.get_by_role("button", name="Log in").click()
    page.get_by_text(NAME).wait_for()


def enter(page: Page, writable: Served, user: str) -> None:
    page.goto(writable.origin)
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
