"""Between the network and optuna-dashboard, which asks nobody who they are: each request passes here, or is refused."""

from __future__ import annotations

import hmac
import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode

from hpo import answers
from hpo.access import Access, is_name
from hpo.answers import Answer, Application, Environ, refusal
from hpo.sessions import SESSION_S, Passwords, Sessions, Throttle, network_of

READS = ("GET", "HEAD")
LONGEST_FORM = 8192  # bytes
# No part is empty, and nothing is there that a browser, a proxy or bottle reads in two ways.
PATH = re.compile(r"(/[A-Za-z0-9._~:@,+=-]+)*/?")
QUERY = re.compile(r"(\?[A-Za-z0-9._~:@,+=&%/-]*)?")
# Whatever else would write is refused, be it of a later optuna-dashboard.
WRITES = re.compile(
    r"DELETE /api/studies/[0-9]+|PUT /api/studies/[0-9]+(/[0-9]+)?/note|POST /api/trials/[0-9]+/tell", re.ASCII
)
WHY_NOT = {
    r"POST /api/studies/[0-9]+/rename/?": "a study keeps its name: renaming would copy its trials and delete it, "
    "with its data, budget and leases",
    r"POST /api/studies/?": "a study is made with `hpo create STUDY.yaml`: one made here has no data to work on",
    r"(POST|DELETE) /api/artifacts/.*": "files of a study are neither added nor removed here; "
    "`hpo report STUDY --publish` writes them",
}
BY_TOKEN = "token holder"  # no user's name, as there is a blank in it
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    host: str
    target: str  # as it stands in the request's first line
    network: str  # of the browser, as far as can be told
    is_https: bool
    proxied: str | None  # whom the proxy has logged in
    cookies: tuple[str, ...]
    origin: str | None
    site: str | None  # where the request was made: same-origin, same-site, cross-site, none
    wants_page: bool
    takes_gzip: bool


@dataclass(frozen=True)
class Person:
    name: str
    can_write: bool
    is_proxied: bool


class Gate:
    """A WSGI application. `writer` None: nobody writes. `token` None: people log in as users."""

    def __init__(
        self, reader: Application, writer: Application | None, access: Access, host: str, port: int, token: str | None
    ) -> None:
        self._reader, self._writer, self._access, self._token = reader, writer, access, token
        names = {_bracketed(host), "localhost", "127.0.0.1", "[::1]"}
        self._hosts = {f"{name}:{port}" for name in names} | (names if port == 80 else set())
        self._cookie = f"hpo_{port}"  # cookies know no ports
        self._sessions, self._throttle, self._passwords = Sessions(), Throttle(), Passwords(access.users)

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        request = _request(environ, self._access, self._cookie)
        try:
            answer = self._answer(request, environ)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            logger.error("%s %r failed: %s: %s", request.method, request.path, type(error).__name__, first)
            answer = refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "this failed; the log of `hpo dashboard` says why")
        start(answer.status, answers.dressed(answer, may_be_kept=request.path.startswith("/static/")))
        return [] if request.method == "HEAD" else answer.body

    def _answer(self, request: Request, environ: Environ) -> Answer:
        if not self._is_ours(request.host):
            return answers.plain(HTTPStatus.MISDIRECTED_REQUEST, "Nothing is served under this name.")
        if not request.target.startswith("/"):
            return refusal(HTTPStatus.BAD_REQUEST, "expected a path as the request's target")
        if request.method not in READS and _is_foreign(request):
            return refusal(HTTPStatus.FORBIDDEN, "a page of another origin may change nothing here")
        if (request.method, request.path) == ("POST", "/login"):
            return self._log_in(request, environ)
        if (request.method, request.path) == ("POST", "/logout"):
            return self._log_out(request)
        if self._holds_token(request):
            return self._enter(request, BY_TOKEN, _without_token(request))
        if (person := self._person(request)) is None:
            return self._ask_to_log_in(request)
        return self._pass_on(request, environ, person)

    def _is_ours(self, host: str) -> bool:
        host = host.lower()
        return host in self._hosts or re.sub(r":[0-9]{1,5}$", "", host) in self._access.hosts

    def _person(self, request: Request) -> Person | None:
        if request.proxied is not None:
            return Person(request.proxied, self._may_write(request.proxied), is_proxied=True)
        names = filter(None, map(self._sessions.name_of, request.cookies))
        return next((Person(name, self._may_write(name), is_proxied=False) for name in names), None)

    def _may_write(self, name: str) -> bool:
        user = self._access.users.get(name)
        return self._writer is not None and (name == BY_TOKEN or (user is not None and user.write))

    def _holds_token(self, request: Request) -> bool:
        given = parse_qs(request.query).get("token", [""])
        return request.method == "GET" and self._is_token(given[0])

    def _is_token(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())

    def _ask_to_log_in(self, request: Request) -> Answer:
        asked = HTTPStatus.UNAUTHORIZED
        how = ("WWW-Authenticate", 'Form realm="incident-hpo"')
        if request.method not in READS or not request.wants_page:
            return refusal(asked, "nobody is logged in; open the page anew to log in", how)
        # A link from elsewhere comes without the cookie; the page itself may ask again with it.
        again = (("Refresh", "0"),) if request.site == "cross-site" else ()
        place = request.path + (f"?{request.query}" if request.query else "")
        return answers.login_page(asked, "", _safe(place), how, *again, by_token=self._token is not None)

    def _log_in(self, request: Request, environ: Environ) -> Answer:
        if (form := _form(environ)) is None:
            return refusal(HTTPStatus.BAD_REQUEST, "expected a form with user and password")
        name, secret, place = form.get("user", ""), form.get("password", ""), _safe(form.get("next", "/"))
        keys = (f"from {request.network}", f"as {name}")
        if wait_s := self._throttle.take(*keys):
            reason = f"Too many failed attempts. Try again in {wait_s / 60 + 1:.0f} min."
            return self._refuse_login(request, HTTPStatus.TOO_MANY_REQUESTS, reason, name, place, wait_s)
        is_right = self._is_token(secret) if self._token is not None else self._passwords.is_right(name, secret)
        if is_right is not False:
            self._throttle.give_back(*keys)
        if is_right is None:
            reason = "Too many people are logging in at this moment. Try again."
            return self._refuse_login(request, HTTPStatus.SERVICE_UNAVAILABLE, reason, name, place, 1)
        who = name if name in self._access.users else "nobody we know"  # people type passwords into the wrong field
        logger.info("login from %s as %s: %s", request.network, who, "right" if is_right else "wrong")
        if not is_right:
            return self._refuse_login(request, HTTPStatus.UNAUTHORIZED, "Wrong user or password.", name, place, None)
        return self._enter(request, name if self._token is None else BY_TOKEN, place)

    def _refuse_login(
        self, request: Request, status: HTTPStatus, reason: str, name: str, place: str, wait_s: float | None
    ) -> Answer:
        more = (("Retry-After", f"{wait_s + 1:.0f}"),) if wait_s is not None else ()
        if not request.wants_page:
            return refusal(status, reason, *more)
        return answers.login_page(status, reason, place, *more, user=name, by_token=self._token is not None)

    def _enter(self, request: Request, name: str, place: str) -> Answer:
        """With a session of its own; the one before is over."""
        for token in request.cookies:
            self._sessions.close(token)
        return answers.redirect(place, self._set_cookie(request, self._sessions.open(name), SESSION_S))

    def _log_out(self, request: Request) -> Answer:
        for token in request.cookies:
            self._sessions.close(token)
        return answers.redirect("/", self._set_cookie(request, "", 0))

    def _set_cookie(self, request: Request, value: str, max_age_s: int) -> tuple[str, str]:
        secure = "; Secure" if request.is_https else ""
        return "Set-Cookie", f"{self._cookie}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}"

    def _pass_on(self, request: Request, environ: Environ, person: Person) -> Answer:
        if not PATH.fullmatch(request.path):
            return refusal(HTTPStatus.NOT_FOUND, "there is no such page")
        if request.method in READS:
            return self._read(request, environ, person)
        if (reason := self._why_not(request, person)) is not None:
            return refusal(HTTPStatus.FORBIDDEN, reason)
        if request.path.endswith("/tell") and not _only_fails(environ):
            return refusal(HTTPStatus.FORBIDDEN, "a trial may be failed here; what it scores, its worker says")
        assert self._writer is not None
        answer = answers.answer_of(self._writer, environ)
        logger.info("%s: %s %s: %s", person.name, request.method, request.path, answer.status)
        return answer

    def _why_not(self, request: Request, person: Person) -> str | None:
        if self._writer is None:
            return "this dashboard is read-only; `hpo dashboard --write` lets people write who have the right"
        if not person.can_write:
            return f"{person.name} may only read; `write: true` in the access file gives the right"
        asked = f"{request.method} {request.path}"
        if WRITES.fullmatch(asked):
            return None
        known = (reason for pattern, reason in WHY_NOT.items() if re.fullmatch(pattern, asked))
        return next(known, "only notes, the end of a trial and the removal of a study are written here")

    def _read(self, request: Request, environ: Environ, person: Person) -> Answer:
        if request.path == "/login":
            return answers.redirect("/")
        if not request.path.startswith("/static/"):  # else the same for everybody, and a file
            for name in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE", "HTTP_RANGE"):
                environ.pop(name, None)
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # optuna-dashboard fails without
        answer = answers.answer_of(self._reader, environ)
        if request.path.startswith("/artifacts/"):
            return answers.inert(answer)
        if answer.header("content-type").startswith("text/html") and answer.header("content-security-policy"):
            return answers.with_badge(
                answer, person.name, is_read_only=not person.can_write, can_leave=not person.is_proxied
            )
        return answers.compressed(answer) if request.takes_gzip else answer


def _request(environ: Environ, access: Access, cookie: str) -> Request:
    proxy, peer = access.proxy, environ.get("REMOTE_ADDR", "")
    is_proxy = proxy is not None and _plain(peer) in proxy.addresses
    header = f"HTTP_{proxy.header.upper().replace('-', '_')}" if proxy and proxy.header else ""
    said = environ.get(header, "").encode("latin-1").decode("utf-8", "replace").strip() if is_proxy else ""
    forwarded = environ.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip() if is_proxy else ""
    parts = [part.strip().partition("=") for part in environ.get("HTTP_COOKIE", "").split(";")]
    encodings = environ.get("HTTP_ACCEPT_ENCODING", "")
    return Request(
        method=environ["REQUEST_METHOD"],
        path=environ.get("PATH_INFO", ""),
        query=environ.get("QUERY_STRING", ""),
        host=environ.get("HTTP_HOST", ""),
        target=environ.get("REQUEST_URI", ""),
        network=network_of(forwarded or peer),
        is_https=is_proxy and environ.get("HTTP_X_FORWARDED_PROTO", "").strip().lower() == "https",
        proxied=said if is_name(said) else None,
        cookies=tuple(value for name, _, value in parts if name == cookie),
        origin=environ.get("HTTP_ORIGIN"),
        site=environ.get("HTTP_SEC_FETCH_SITE"),
        wants_page="text/html" in environ.get("HTTP_ACCEPT", ""),
        takes_gzip=re.search(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", encodings) is not None,
    )


def _is_foreign(request: Request) -> bool:
    """What browsers say of where a request was made; other programs send no cookie that they were not given."""
    if request.site not in (None, "same-origin", "none"):
        return True
    return request.origin is not None and request.origin not in (f"http://{request.host}", f"https://{request.host}")


def _only_fails(environ: Environ) -> bool:
    body = environ["wsgi.input"].read(LONGEST_FORM)
    environ["wsgi.input"] = BytesIO(body)  # for whoever reads it next
    try:
        state = json.loads(body)["state"]
    except (ValueError, LookupError, TypeError):
        return False
    return isinstance(state, str) and state.upper() == "FAIL"


def _form(environ: Environ) -> dict[str, str] | None:
    """The first value of each field."""
    body = environ["wsgi.input"].read(LONGEST_FORM + 1)
    if len(body) > LONGEST_FORM:
        return None
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=8)
    except ValueError:
        return None
    return {name: values[0] for name, values in fields.items()}


def _without_token(request: Request) -> str:
    query = urlencode([pair for pair in parse_qsl(request.query) if pair[0] != "token"])
    return _safe(request.path + (f"?{query}" if query else ""))


def _safe(place: str) -> str:
    """A path here, never another site; to log in leads to the first page."""
    path, mark, query = place.partition("?")
    is_safe = path.startswith("/") and PATH.fullmatch(path) and QUERY.fullmatch(mark + query)
    return place if is_safe and path not in ("/login", "/logout") else "/"


def _plain(address: str) -> str:
    try:
        return str(ip_address(address))
    except ValueError:
        return address


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host.lower()
