"""The page of `hpo check-data -o` as a browser sees it: whole, offline, and proof against what users call things."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpo.data_page import write_data_page
from objectives.statistics import Statistics

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

pytestmark = pytest.mark.browser

TITLES = ["Categories", "Subcategories", "Splits", "Words per text", "Held-out pairs", "Stripped or masked"]
TITLES += ["Agreement of linked duplicates", "Ceilings"]
MARKS = [31, 240, 3, 30, 5, 2, 2, 10]  # of each plot
IMAGE = "<img src=x onerror=alert(1)></script><script>alert(1)</script>"
NAMES = ["<script>alert(1)</script>", "<b>bold</b>", '<a href="//x.example">x</a>', "a &lt; b & 'c'", "<br>", "2026"]
HOSTILE = {IMAGE: 24_000_000} | dict.fromkeys(NAMES, 1_000_000)
# Of each plot: how many marks are seen, which texts are cut off, and how many labels of an axis lie on another.
DRAWN = """() => [...document.querySelectorAll(".plotly-graph-div")].map(plot => {
    const outer = plot.getBoundingClientRect();
    const boxes = selector => [...plot.querySelectorAll(selector)].map(
        element => [element.textContent, element.getBoundingClientRect()]);
    const inside = box => box.left >= outer.left - 1 && box.right <= Math.min(outer.right, innerWidth) + 1
        && box.top >= outer.top - 1 && box.bottom <= outer.bottom + 1;
    const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom;
    const crowded = labels => labels.filter(([_, a], n) => labels.slice(n + 1).some(([_, b]) => overlap(a, b)));
    return [boxes(".point > path, path.point").filter(([_, box]) => box.width && box.height && inside(box)).length,
            boxes("text").filter(([_, box]) => box.width && !inside(box)).map(([text, _]) => text),
            crowded(boxes(".xtick text")).length + crowded(boxes(".ytick text")).length];
})"""
COLOURS = """() => {
    document.body.style.background = "Canvas";
    const tick = document.querySelector(".ytick text");
    return [getComputedStyle(document.body).backgroundColor, getComputedStyle(tick).fill];
}"""


FOUND = Statistics(  # of an export that gives no cause for concern; its names are long, its numbers wide
    rows=31_000_000,
    incidents=30_000_000,
    changed={"html": 1_000_000, "email": 12_000},
    categories={f"category with a long name, number {n}": 5_000_000 // (n + 1) for n in range(45)},
    subcategories=240,
    small_subcategories=12,
    words={5: 3, 25: 10, 50: 20, 75: 44, 95: 200},
    equal_texts=1_200,
    duplicates=300,
    agreement={"category": 0.9, "subcategory": 0.7},
    splits={"train": 21_000_000, "validation": 4_500_000, "test": 4_500_000},
    train_pairs=20_000,
    held_out_grades={0.0: 6_000, 0.25: 2_650, 0.5: 800, 0.75: 300, 1.0: 250},
    ceilings={"spearman": 0.873, "spearman_binary": 0.82, "roc_auc": 1.0, "pr_auc": 1.0, "f1": 1.0},
    subcategory_sizes=[500 - 2 * n for n in range(240)],
    word_counts={10 * n: 1_000_000 // (n + 1) for n in range(30)},
    noise_ceilings={"spearman": 0.82, "spearman_binary": 0.81, "roc_auc": 0.93, "pr_auc": 0.81, "f1": 0.9},
    near_duplicates=2_000,
    largest_group=40,
    merged=0,
    repeated=4_321,
)


@pytest.fixture(scope="module")
def browser(chromium: dict[str, Any]) -> Iterator[Browser]:
    """One for all."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as library:
        started = library.chromium.launch(**chromium)
        yield started
        started.close()


@dataclass(frozen=True)
class Opened:
    page: Page
    events: list[str]  # what the browser asked for, logged, or showed beside the page


def open_page(browser: Browser, folder: Path, found: Statistics) -> Opened:
    path = folder / "page.html"
    write_data_page(path, IMAGE, found)
    opened = Opened(browser.new_page(offline=True), [])

    def dismiss(dialog: Dialog) -> None:
        opened.events.append(dialog.message)
        dialog.dismiss()

    opened.page.on("request", lambda request: opened.events.append(request.url))
    opened.page.on("console", lambda message: opened.events.append(message.text))
    opened.page.on("pageerror", lambda error: opened.events.append(str(error)))
    opened.page.on("dialog", dismiss)
    opened.page.goto(path.as_uri())
    return opened


@pytest.fixture(scope="module")
def whole(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_page(browser, tmp_path_factory.mktemp("page"), FOUND)


@pytest.mark.parametrize("width", [1280, 400])
def test_every_plot_is_drawn_whole_without_scrolling_sideways(whole: Opened, width: int) -> None:
    page = whole.page
    if page.viewport_size != {"width": width, "height": 720}:
        page.set_viewport_size({"width": width, "height": 720})
        page.reload()
    assert page.locator(".parts + .parts h2").all_text_contents() == TITLES
    assert page.evaluate(DRAWN) == [[marks, [], 0] for marks in MARKS]
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_page_asks_for_nothing_and_logs_nothing(whole: Opened) -> None:
    assert set(whole.events) == {whole.page.url}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_labels_are_legible_on_a_background_that_follows_the_scheme(whole: Opened, scheme: Any) -> None:
    whole.page.emulate_media(color_scheme=scheme)
    background, label = (luminance(colour) for colour in whole.page.evaluate(COLOURS))
    assert (background > label) == (scheme == "light")
    assert (max(background, label) + 0.05) / (min(background, label) + 0.05) > 7  # as WCAG AAA has it


def luminance(colour: str) -> float:
    red, green, blue = (math.pow(int(part) / 255, 2.2) for part in re.findall(r"\d+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.fixture(scope="module")
def odd(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Hostile names, and no data for some plots."""
    empty: dict[str, Any] = {
        "changed": {},
        "agreement": {},
        "noise_ceilings": {},
        "subcategory_sizes": [],
        "word_counts": {},
    }
    return open_page(browser, tmp_path_factory.mktemp("odd"), replace(FOUND, categories=HOSTILE, **empty))


def test_hostile_names_do_nothing_and_show_as_text(odd: Opened) -> None:
    page = odd.page
    labels = page.locator("#plot0 .ytick text").all_text_contents()
    assert labels == [name if len(name) <= 24 else f"{name[:23]}…" for name in HOSTILE]
    assert page.locator("h1").text_content() == IMAGE
    assert IMAGE in (page.locator("li").first.text_content() or "")
    page.locator("#plot0 .point > path").nth(2).hover(force=True)
    page.locator("#plot0 .hovertext").wait_for()
    assert page.locator("#plot0 .hovertext").text_content() == "<b>bold</b>: 1,000,000"
    assert odd.events == [page.url]


def test_plots_without_data_are_left_out(odd: Opened) -> None:
    titles = odd.page.locator(".parts + .parts h2").all_text_contents()
    assert titles == ["Categories", "Splits", "Held-out pairs", "Ceilings"]
    assert odd.page.locator(".legendtext").all_text_contents() == ["with ties", "target 0.8"]


NEEDS_ATTENTION: list[tuple[dict[str, Any], str]] = [
    ({}, "Nothing."),
    ({"rows": 40_000_000}, "25% of the rows"),
    ({"small_subcategories": 121}, "121 of 240 subcategories"),
    ({"categories": {"a": 16_000_000, "b": 14_000_000}}, "The category a holds 53%"),
    ({"largest_group": 3_000_000}, "10% of the incidents are one group"),
    ({"ceilings": {"spearman": 0.7, "f1": 1.0}, "noise_ceilings": {"spearman": 0.6}}, "hold spearman to 0.70"),
    ({"noise_ceilings": {"spearman": 0.75, "spearman_binary": 0.81, "f1": 0.7}}, "holds spearman to 0.75, f1 to 0.70"),
    ({"agreement": {"category": 0.9, "subcategory": 0.59}}, "agree in subcategory in only 59%"),
]


@pytest.mark.parametrize(("change", "said"), NEEDS_ATTENTION)
def test_what_needs_attention_is_said_and_nothing_else(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_data_page(tmp_path / "page.html", "export.csv", replace(FOUND, **change))
    sentences = re.findall("<li>(.*?)</li>", (tmp_path / "page.html").read_text())
    assert len(sentences) == 1
    assert said in sentences[0]
