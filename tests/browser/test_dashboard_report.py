"""What was published of a study as a browser shows it: report, plots, best.yaml, notes of trials; none of it active."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta, upload_artifact
from sqlalchemy import URL

from hpo.publish import publish
from hpo.study import open_study, ours
from storage.artifacts import PostgresArtifacts
from storage.native import PostgresStorage
from tests.browser.served import Served, serving
from tests.recorded import CURVES, EARLY, FAILED, PRUNED, WHY, make_recorded_study

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Locator, Page

SCORES = [row["metrics"]["spearman"] for row in CURVES]
REPORT = """# Report of servicedesk

40 of 40 trials have ended (37 complete, 2 pruned, 1 failed).

| metric | hand\\_set | best |
| --- | ---: | ---: |
| spearman | 0.5277 | 0.5888 |
| roc\\_auc | 0.8717 | 0.9012 |

- Link more duplicates.
"""
FIGURES: dict[str, dict[str, Any]] = {
    "progress": {
        "data": [
            {"type": "scatter", "mode": "markers", "y": SCORES, "name": "trials"},
            {"type": "scatter", "y": SCORES},
        ],
        "layout": {
            "title": {
                "text": "Spearman of each trial",
                "subtitle": {"text": "40 of 40 trials<br>shown"},
                "automargin": True,
            },
            "margin": {"t": 8},
            "height": 200,
        },
    },
    "curves": {
        "data": [{"type": "scatter", "y": [value for _, value in row["curve"]]} for row in CURVES[:7]],
        "layout": {"title": {"text": "Learning curves"}},
    },
}
BEST = "schema_version: 1\nmodel: größer\n" * 20
SCRIPT = b"<script>document.title = 'taken over'</script>"

pytestmark = pytest.mark.browser
Open = Callable[[int], "Page"]


@pytest.fixture
def study(database: URL) -> optuna.Study:
    made, _ = make_recorded_study(database)
    publish(made, REPORT, FIGURES, BEST)
    return made


@pytest.fixture
def served(database: URL, study: optuna.Study) -> Iterator[Served]:
    with serving(database) as found:
        yield found


@pytest.fixture
def site(served: Served, study: optuna.Study) -> str:
    """Where the dashboard serves the study's pages."""
    return f"{served.origin}/dashboard/studies/{study._study_id}"


@pytest.fixture
def open_page(served: Served, chromium: dict[str, Any]) -> Iterator[Open]:
    """open_page(width): of a Chromium that holds the token; at the end its console must be empty."""
    from playwright.sync_api import sync_playwright

    complaints = list[str]()
    with sync_playwright() as library:
        browser = library.chromium.launch(**chromium)

        def make(width: int) -> Page:
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(f"{served.origin}/?token={served.token}")
            return page

        yield make
        browser.close()
    assert complaints == []


def fetched(served: Served, path: str) -> tuple[dict[str, str], bytes]:
    """Headers and content of what a page of another origin asks for."""
    reply = served.ask("GET", path, headers={"Origin": "http://elsewhere.example"}, cookie=served.cookie_of())
    assert reply.status == 200
    return reply.headers, reply.content


def box_of(locator: Locator) -> FloatRect:
    found = locator.first.bounding_box()
    assert found is not None
    return found


@pytest.mark.parametrize("width", [1280, 400])
def test_study_shows_report_plots_and_notes_of_trials(site: str, open_page: Open, width: int) -> None:
    page = open_page(width)
    page.goto(f"{site}/note")
    page.get_by_role("heading", name="Report of servicedesk").wait_for()
    table = page.get_by_role("table")
    assert table.locator("thead th").all_text_contents() == ["metric", "hand_set", "best"]
    assert table.locator("tbody tr").nth(1).locator("td").all_text_contents() == ["roc_auc", "0.8717", "0.9012"]
    page.get_by_role("listitem").get_by_text("Link more duplicates.").wait_for()
    page.goto(site)
    for name, figure in FIGURES.items():
        plot = page.locator(f"[id='user-defined-plot:hpo-{name}']")
        plot.locator(".gtitle", has_text=figure["layout"]["title"]["text"]).wait_for()
        assert plot.locator(".scatterlayer .trace").count() == len(figure["data"])
        card, drawn, title, area = (
            box_of(plot),
            box_of(plot.locator(".main-svg")),
            box_of(plot.locator(".g-gtitle")),
            box_of(plot.locator(".nsewdrag")),
        )
        assert (drawn["width"], drawn["height"]) == (card["width"], card["height"])
        assert card["y"] <= title["y"] < title["y"] + title["height"] <= area["y"]
    for number, words in ((PRUNED, f"pruned, {WHY}"), (EARLY, "early_stopping at epoch 0.93"), (0, "baseline v4:")):
        page.goto(f"{site}/trials?numbers={number}")
        page.get_by_text(words).first.wait_for()


def test_error_in_a_note_is_shown_as_text_not_as_markup(site: str, open_page: Open) -> None:
    page = open_page(1280)
    page.goto(f"{site}/trials?numbers={FAILED}")
    page.get_by_text("failed: RuntimeError: a_b * <c> `d`").wait_for()


@pytest.mark.parametrize("width", [1280, 400])
def test_best_file_is_downloaded_with_equal_bytes(site: str, open_page: Open, width: int) -> None:
    page = open_page(width)
    page.goto(site)
    with page.expect_download() as download:
        page.get_by_label("download artifact").click()
    assert download.value.suggested_filename == "best.yaml"
    assert download.value.path().read_bytes() == BEST.encode()


def test_artifact_that_calls_itself_a_page_is_saved_not_shown(
    served: Served, site: str, open_page: Open, study: optuna.Study, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_bytes(SCRIPT)
    store = PostgresArtifacts(ours(study).ask, study._study_id)
    hostile = upload_artifact(artifact_store=store, file_path=str(tmp_path / "page.html"), study_or_trial=study)
    url = f"/artifacts/{study._study_id}/{hostile}"
    headers, content = fetched(served, url)
    assert content == SCRIPT
    assert headers["content-disposition"] == "attachment"
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    page = open_page(1280)
    page.goto(f"{site}/note")
    with page.expect_download() as download:
        page.evaluate("path => { location.href = path }", url)
    assert download.value.path().read_bytes() == SCRIPT
    assert page.title() == "Optuna Dashboard"


def test_artifacts_cannot_be_changed_through_it(served: Served, study: optuna.Study) -> None:
    (meta,) = get_all_artifact_meta(study, storage=study._storage)
    path, cookie = f"/api/artifacts/{study._study_id}", served.cookie_of()
    file = {"file": "data:text/plain;base64,bWluZQ==", "filename": "best.yaml"}
    assert served.ask("POST", path, file, cookie=cookie).status == 403
    assert served.ask("DELETE", f"{path}/{meta.artifact_id}", cookie=cookie).status == 403
    assert served.ask("DELETE", f"/api/studies/{study._study_id}", {}, cookie=cookie).status == 403
    assert get_all_artifact_meta(study, storage=study._storage) == [meta]
    assert fetched(served, f"/artifacts/{study._study_id}/{meta.artifact_id}")[1] == BEST.encode()


def test_large_artifact_comes_whole(served: Served, study: optuna.Study) -> None:
    content = bytes(range(256)) * (16 << 12)
    (meta,) = get_all_artifact_meta(study, storage=study._storage)
    PostgresArtifacts(ours(study).ask, study._study_id).write(meta.artifact_id, io.BytesIO(content))
    assert fetched(served, f"/artifacts/{study._study_id}/{meta.artifact_id}")[1] == content


def test_study_with_notes_on_thousands_of_trials_is_answered_at_once(served: Served, database: URL) -> None:
    """By itself optuna-dashboard compares each trial with each note: 10 s for so many."""
    study, _ = open_study(PostgresStorage(database), "servicedesk")
    template = study.get_trials(deepcopy=False)[PRUNED]
    for _ in range(3000):
        study._storage.create_new_trial(study._study_id, template)
    publish(study, REPORT, FIGURES, BEST)
    path = f"/api/studies/{study._study_id}"
    started = time.monotonic()
    answered = json.loads(fetched(served, path)[1])
    assert time.monotonic() - started < 4
    assert answered["trials"][PRUNED]["note"]["body"].startswith("pruned, ")
    assert [trial["note"]["body"] for trial in answered["trials"][-2:]] == [
        answered["trials"][PRUNED]["note"]["body"]
    ] * 2
