"""What the dashboard's gate sends: refusals, the login page, and the headers that every answer has."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from html import escape
from http import HTTPStatus
from importlib.resources import files
from string import Template
from typing import Any

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
Headers = tuple[tuple[str, str], ...]

JSON, HTML, BYTES = "application/json", "text/html; charset=utf-8", "application/octet-stream"
SHOWN = ("image/", "audio/", "video/")  # kinds of files that pages may show; any other is bytes, never script or style
SMALLEST_GZIP = 1024
INERT_CSP = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
ALWAYS: Headers = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
OURS = {name.lower() for name, _ in ALWAYS} | {"cache-control", "content-security-policy", "server", "location"}
LOGIN = Template(files("hpo").joinpath("login.html").read_text(encoding="utf-8"))
STYLE = re.findall(r"<style>(.*?)</style>", LOGIN.template, re.DOTALL)[0]
LOGIN_CSP = (
    "default-src 'none'; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
)
USER = Template("""<label for="user">User</label>
<input id="user" name="user" value="$user" required autocomplete="username" autocapitalize="none"
 spellcheck="false"$focus>
""")
PASSWORD = Template("""<label for="password">Password</label>
<input id="password" name="password" type="password" required autocomplete="current-password"$focus>""")
TOKEN = """<label for="password">Token</label>
<input id="password" name="password" required autocomplete="off" spellcheck="false" autofocus>"""
# In the bar of optuna-dashboard, whose own contents end before it.
BADGE = Template(files("hpo").joinpath("badge.html").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Answer:
    status: str
    headers: Headers
    body: Iterable[bytes]

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")


def refusal(status: HTTPStatus, reason: str, *more: tuple[str, str]) -> Answer:
    return _whole(status, JSON, json.dumps({"reason": reason}).encode(), *more)


def plain(status: HTTPStatus, text: str) -> Answer:
    return _whole(status, "text/plain; charset=utf-8", f"{text}\n".encode())


def redirect(place: str, *more: tuple[str, str]) -> Answer:
    """After a form or a token: what follows is a GET."""
    return _whole(HTTPStatus.SEE_OTHER, "text/plain; charset=utf-8", b"", ("Location", place), *more)


def login_page(
    status: HTTPStatus, message: str, place: str, *more: tuple[str, str], user: str = "", by_token: bool
) -> Answer:
    """Leads to `place` afterwards."""
    hint, fields = "Open the address that <code>hpo dashboard</code> printed, or enter its token.", TOKEN
    if not by_token:
        first, second = (" autofocus", "") if not user else ("", " autofocus")
        hint = "Please log in."
        fields = USER.substitute(user=escape(user), focus=first) + PASSWORD.substitute(focus=second)
    text = LOGIN.substitute(hint=hint, message=escape(message), next=escape(place), fields=fields)
    return _whole(status, HTML, text.encode(), ("Content-Security-Policy", LOGIN_CSP), *more)


def answer_of(app: Application, environ: Environ) -> Answer:
    started = list[tuple[str, Headers]]()

    def start(status: str, headers: list[tuple[str, str]], *_: Any) -> None:
        started.append((status, tuple(headers)))

    body = app(environ, start)
    answer = Answer(*started[-1], body)
    if answer.status.startswith("4") and not answer.header("content-type").startswith(JSON):
        status = HTTPStatus(int(answer.status[:3]))
        return refusal(status, status.phrase.lower())
    return answer


def with_badge(page: Answer, name: str, *, is_read_only: bool, can_leave: bool) -> Answer:
    """The user's name, and a way out for whoever came in here. Bound to a user, the page is no longer a file."""
    right, button = "read only" * is_read_only, "<button>Log out</button>" * can_leave
    badge = BADGE.substitute(name=escape(name), right=right, button=button)
    body = b"".join(page.body).replace(b"</body>", f"{badge}</body>".encode())
    dropped = ("content-length", "etag", "last-modified", "accept-ranges")
    kept = tuple(pair for pair in page.headers if pair[0].lower() not in dropped)
    policy = page.header("content-security-policy")
    policy += ";base-uri 'self';form-action 'self';frame-ancestors 'none'"
    headers = (*without(kept, "content-security-policy"), ("Content-Security-Policy", policy), _length(body))
    return replace(page, headers=headers, body=[body])


def inert(file: Answer) -> Answer:
    """Of a study, to be saved and not shown, whatever it says that it is."""
    kind = file.header("content-type")
    headers = without(file.headers, "content-type", "content-disposition", "content-security-policy")
    kind = kind if kind.startswith(SHOWN) else BYTES
    return replace(file, headers=(*headers, ("Content-Type", kind), ("Content-Disposition", "attachment")))


def compressed(answer: Answer) -> Answer:
    """A study of thousands of trials to a tenth and less."""
    if not isinstance(answer.body, list) or not answer.header("content-type").startswith((JSON, "text/csv")):
        return answer
    body = b"".join(answer.body)
    if len(body) < SMALLEST_GZIP:
        return replace(answer, body=[body])
    body = gzip.compress(body, compresslevel=6, mtime=0)
    headers = (*without(answer.headers, "content-length"), _length(body), ("Content-Encoding", "gzip"))
    return replace(answer, headers=(*headers, ("Vary", "Accept-Encoding")), body=[body])


def dressed(answer: Answer, *, may_be_kept: bool) -> list[tuple[str, str]]:
    """All headers. Pages bring a policy of their own; whatever else is opened as a page can do nothing."""
    policy = answer.header("content-security-policy") or INERT_CSP
    kept = [pair for pair in answer.headers if pair[0].lower() not in OURS and not _is_cors(pair[0])]
    place = [("Location", re.sub(r"^https?://[^/]*", "", value))] if (value := answer.header("location")) else []
    cache = ("Cache-Control", "private, no-cache" if may_be_kept else "no-store")
    return [*kept, *place, *ALWAYS, cache, ("Content-Security-Policy", policy)]


def without(headers: Headers, *names: str) -> Headers:
    return tuple(pair for pair in headers if pair[0].lower() not in names)


def _is_cors(name: str) -> bool:
    return name.lower().startswith("access-control-")


def _length(body: bytes) -> tuple[str, str]:
    return "Content-Length", str(len(body))


def _whole(status: HTTPStatus, kind: str, body: bytes, *more: tuple[str, str]) -> Answer:
    headers = (("Content-Type", kind), _length(body), *more)
    return Answer(f"{status.value} {status.phrase}", headers, [body])
