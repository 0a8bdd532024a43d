"""Every route of optuna-dashboard with every method: nobody gets farther than they may."""

from __future__ import annotations

import re
import time
from collections.abc import Container
from functools import partial
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from optuna_dashboard._app import create_app
from sqlalchemy import URL

from storage.native import PostgresStorage
from tests.browser.served import METHODS, PAGE, READS, Place, Reply, Served, all_rows, make_place, serving
from tests.chaos.crew import make_crew

CONTENTS = {  # for a route that would do something with it
    "note": {"body": "taken over", "version": 1_000_001},
    "tell": {"state": "Complete", "values": [0.99]},
    "rename": {"study_name": "other"},
    "studies": {"study_name": "new", "directions": ["minimize"]},
    "user-attrs": {"user_attrs": {"worker": "mine"}},
    "preference": {"mode": "ChooseWorst", "candidates": [0, 1], "clicked": 0},
    "preference_feedback_component": {"output_type": "note"},
    "artifact": {"file": "data:text/plain;base64,bWluZQ==", "filename": "mine.html"},
}
pytestmark = pytest.mark.browser
Route = tuple[str, str]  # method and path


def paths(place: Place) -> list[str]:
    """Of all routes, filled in with what is there."""
    numbers = {"study_id": str(place.study._study_id), "trial_id": str(place.running), "history_id": "1"}
    numbers |= {"plot_type": "slice", "filename": "bundle.js", "": "/studies/1"}
    found = set[str]()
    for route in create_app(InMemoryStorage(), object()).routes:
        file = place.file_of_trial if "trial_id" in route.rule else place.file
        fill = partial(_filled, numbers | {"artifact_id": file})
        found.add(re.sub(r"<(\w*)[^>]*>", fill, route.rule))
    return sorted(found)


def content_of(path: str) -> object:
    kind = "artifact" if path.startswith("/api/artifacts") else path.rpartition("/")[2]
    return CONTENTS.get(kind, {})


def walk(
    place: Place, site: Served, headers: dict[str, str] | None = None, cookie: str = "", but: Container[Route] = ()
) -> dict[Route, Reply]:
    """What comes back from all routes with all methods."""
    routes = [(method, path) for path in paths(place) for method in METHODS if (method, path) not in but]
    return {(how, path): site.ask(how, path, content_of(path), headers, cookie=cookie) for how, path in routes}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("served", ["read_only", "writable"])
def test_every_route_is_refused_without_login(place: Place, served: str, request: pytest.FixtureRequest) -> None:
    site: Served = request.getfixturevalue(served)
    for headers in ({}, PAGE, {"Cookie": f"hpo_{site.port}=guessed"}, {"X-Remote-User": "anna"}):
        found = walk(place, site, headers)
        assert len(found) == 9 * len(paths(place)) > 200
        assert {reply.status for reply in found.values()} == {401}
        assert not any(b"servicedesk" in reply.content or b"optuna" in reply.content for reply in found.values())


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("served", ["read_only", "writable"])
def test_every_route_is_refused_under_a_foreign_name(place: Place, served: str, request: pytest.FixtureRequest) -> None:
    site: Served = request.getfixturevalue(served)
    cookie = site.cookie_of("anna")
    for host in ("evil.example", f"evil.example:{site.port}"):
        found = walk(place, site, {"Host": host}, cookie)
        assert {reply.status for reply in found.values()} == {421}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("served", "user"), [("read_only", "anna"), ("read_only", "ben"), ("writable", "ben")])
def test_every_write_is_refused_to_whoever_may_only_read(
    place: Place, served: str, user: str, request: pytest.FixtureRequest
) -> None:
    site: Served = request.getfixturevalue(served)
    found = walk(place, site, cookie=site.cookie_of(user))
    writes = {key: reply for key, reply in found.items() if key[0] not in READS}
    assert {reply.status for reply in writes.values()} == {403}
    assert {reply.reason.partition(";")[0] for reply in writes.values()} == {
        "this dashboard is read-only" if served == "read_only" else "ben may only read"
    }


@pytest.mark.usefixtures("unchanged")
def test_every_page_is_there_for_a_reader(place: Place, read_only: Served) -> None:
    """So that the refusals above are of routes that exist."""
    cookie = read_only.cookie_of("ben")
    found = {path: read_only.ask("GET", path, cookie=cookie).status for path in paths(place)}
    of_writes = {path for path in found if path.startswith(("/api/artifacts", "/api/llm", "/api/trials"))}
    of_writes |= {path for path in found if re.search(r"/(rename|note|skip|preference\w*|preference/1)$", path)}
    assert {path: status for path, status in found.items() if status not in (200, 302, 303)} == {
        path: found[path] for path in of_writes
    }
    assert {found[path] for path in of_writes} <= {404, 405}


@pytest.mark.usefixtures("unchanged")
def test_whoever_may_write_writes_notes_ends_trials_and_removes_studies_alone(place: Place, writable: Served) -> None:
    cookie, study = writable.cookie_of("anna"), place.study._study_id
    passing = {("DELETE", f"/api/studies/{study}"), ("PUT", f"/api/studies/{study}/note")}
    passing |= {("PUT", f"/api/studies/{study}/{place.running}/note"), ("POST", f"/api/trials/{place.running}/tell")}

    found = walk(place, writable, cookie=cookie, but=passing)  # they are tried below
    assert len(found) == len(METHODS) * len(paths(place)) - len(passing)
    writes = {route: reply for route, reply in found.items() if route[0] not in READS}
    assert {reply.status for reply in writes.values()} == {403}
    sentences = {
        ("POST", f"/api/studies/{study}/rename"): "a study keeps its name: ",
        ("POST", "/api/studies"): "a study is made with `hpo create STUDY.yaml`",
        ("POST", f"/api/artifacts/{study}"): "files of a study are neither added nor removed here",
        ("POST", f"/api/artifacts/{study}/{place.running}"): "files of a study are neither added nor removed here",
        ("DELETE", f"/api/artifacts/{study}/{place.file}"): "files of a study are neither added nor removed here",
        ("POST", "/incompatible-rdb-schema"): "only notes, the end of a trial and the removal of a study",
        (
            "POST",
            f"/api/trials/{place.running}/user-attrs",
        ): "only notes, the end of a trial and the removal of a study",
    }
    for key, sentence in sentences.items():
        assert writes[key].reason.startswith(sentence)


def test_notes_are_written_by_whoever_may(place: Place, writable: Served) -> None:
    cookie, path = writable.cookie_of("anna"), f"/api/studies/{place.study._study_id}"
    before = writable.ask("GET", path, cookie=cookie).content
    for where, words in ((path, b"of the study"), (f"{path}/{place.finished}", b"of a trial")):
        note = {"body": f"mine {words.decode()}", "version": 1_000_001}
        assert writable.ask("PUT", f"{where}/note", note, cookie=cookie).status == 204
        assert writable.ask("PUT", f"{where}/note", note, cookie=cookie).status == 409  # it has changed since
        assert b"mine " + words not in before
        assert b"mine " + words in writable.ask("GET", path, cookie=cookie).content


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "outcome",
    [
        {"state": "Complete", "values": [1e9]},
        {"state": "Running"},
        {"values": [1.0]},
        {"state": None},
        [],
        "Fail",
        None,
    ],
)
def test_no_outcome_but_a_failure_is_recorded_by_hand(place: Place, writable: Served, outcome: object) -> None:
    told = writable.ask("POST", f"/api/trials/{place.running}/tell", outcome, cookie=writable.cookie_of("anna"))
    assert (told.status, told.reason) == (403, "a trial may be failed here; what it scores, its worker says")


def test_study_is_removed_while_its_workers_report(database: URL, tmp_path: Path) -> None:
    crew = make_crew(database, tmp_path, trials=1000, step_s=0.002)
    crew.start(3)
    while not crew.told():
        time.sleep(0.01)
    study = PostgresStorage(database).get_study_id_from_name("study")
    with serving(database, "--write") as served:
        removed = served.ask("DELETE", f"/api/studies/{study}", cookie=served.cookie_of())
    assert (removed.status, all_rows(database)["public.studies"]) == (204, [])
    assert all(crew.join())  # each ends, and none of them with 0


def test_trial_is_ended_by_whoever_may(place: Place, writable: Served) -> None:
    trial = place.study.ask()._trial_id
    path, told = f"/api/trials/{trial}/tell", {"state": "Fail"}
    assert writable.ask("POST", path, told, cookie=writable.cookie_of("anna")).status == 204
    found = place.study._storage.get_trial(trial)
    assert (found.state, found.values) == (TrialState.FAIL, None)
    assert writable.ask("POST", path, told, cookie=writable.cookie_of("anna")).status == 500  # once and for all


def test_study_is_removed_with_its_files_and_all_else_by_whoever_may(
    place: Place, writable: Served, tmp_path: Path
) -> None:
    before = all_rows(place.url)
    gone = make_place(place.url, tmp_path, "gone")
    path, cookie = f"/api/studies/{gone.study._study_id}", writable.cookie_of("anna")
    assert writable.ask("GET", path, cookie=cookie).status == 200
    assert len(all_rows(place.url)["incident_hpo.artifacts"]) == len(before["incident_hpo.artifacts"]) + 3
    assert writable.ask("DELETE", path, {}, cookie=cookie).status == 204
    assert writable.ask("GET", path, cookie=cookie).status == 404
    after = all_rows(place.url)
    data = {name: after.pop(name) for name in ("incident_hpo.datasets", "incident_hpo.dataset_chunks")}
    assert after == {name: rows for name, rows in before.items() if name not in data}


def _filled(values: dict[str, str], part: re.Match[str]) -> str:
    return values[part[1]]
