"""The page of `hpo report -o` as a browser sees it: whole, offline, legible, and proof against hostile names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import FrozenTrial

from hpo.report_page import Section, write_report_page
from hpo.report_plots import plots
from objectives.evaluation import METRICS
from tests.recorded_trials import IMPORTANCES, made_up_diagnosis, recorded_trials, study_file, trial

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

pytestmark = pytest.mark.browser

IMAGE = "<img src=x onerror=alert(1)></script><script>alert(1)</script>"
LINK = '<a href="//x.example">x</a> & "quoted" \'too\' &lt;'
HEADING = ("metric", "baseline", "best", "95 %", "ceiling", "of it", "target", "gap")
ROWS = (
    ("spearman", "0.528", "0.581", "0.540 to 0.624", "0.831", "70 %", "0.80", "0.219"),
    ("spearman_binary", "0.440", "0.472", "0.430 to 0.511", "0.592", "80 %", "0.80", "0.328"),
    ("roc_auc", "0.872", "0.895", "0.871 to 0.912", "1.000", "90 %", "0.80", ""),
)
STEPS = (
    ("hpo confirm servicedesk --top 3", "+0.0041", "1.20", "the half-width of the interval, and three seeds of each"),
    ("hpo study extend servicedesk --trials 40", "", "0.42", "the odds, over the space that was searched so far"),
)
SECTIONS = [
    Section("Summary", ("40 of 40 trials have ended.", "The best is trial 35.")),
    Section("Which targets can be met", (), (HEADING, ROWS), ("spearman: target 0.80 not met (0.581)",)),
    Section("Next steps", table=(("what", "gain", "hours", "told from"), STEPS)),
]
# Of each plot: its id, how many marks and lines are seen, and which texts are cut off or lie on another one.
DRAWN = """() => [...document.querySelectorAll(".plotly-graph-div")].map(plot => {
    const outer = plot.getBoundingClientRect();
    const seen = selector => [...plot.querySelectorAll(selector)].map(element => ({
        text: element.textContent.trim(), box: element.getBoundingClientRect(),
        slants: /rotate\\(-?[1-9]/.test(element.getAttribute("transform")),
    })).filter(one => one.box.width);
    const inside = ({box}) => box.left >= outer.left - 1 && box.right <= Math.min(outer.right, innerWidth) + 1
        && box.top >= outer.top - 1 && box.bottom <= outer.bottom + 1;
    const overlap = (a, b) => !(a.slants && b.slants) && a.box.left + 1 < b.box.right && b.box.left + 1 < a.box.right
        && a.box.top + 2 < b.box.bottom && b.box.top + 2 < a.box.bottom;
    const texts = seen("text").filter(one => one.text);
    return {
        id: plot.id,
        marks: seen(".barlayer .point > path, .scatterlayer :is(.point, .js-line)").filter(inside).length,
        cut: texts.filter(one => !inside(one)).map(one => one.text),
        crowded: texts.filter((a, n) => texts.slice(n + 1).some(b => overlap(a, b))).map(one => one.text),
    };
})"""
LEGIBLE = """() => {
    document.body.style.background = "Canvas";
    const colour = element => getComputedStyle(element).fill;
    return [getComputedStyle(document.body).backgroundColor,
            ...[".ytick text", ".legendtext", ".annotation-text"].map(one => colour(document.querySelector(one)))];
}"""


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

    def at(self, width: int) -> Page:
        if self.page.viewport_size != {"width": width, "height": 900}:
            self.page.set_viewport_size({"width": width, "height": 900})
            self.page.reload()
        return self.page


def open_page(
    browser: Browser, folder: Path, title: str, sections: Sequence[Section], trials: Sequence[FrozenTrial], **space: Any
) -> Opened:
    path = folder / "report.html"
    write_report_page(path, title, sections, plots(trials, study_file(**space), IMPORTANCES))
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
    return open_page(browser, tmp_path_factory.mktemp("page"), "Report of servicedesk", SECTIONS, recorded_trials())


@pytest.mark.parametrize("width", [1280, 400])
def test_every_plot_is_drawn_in_view_with_all_of_its_texts_apart(whole: Opened, width: int) -> None:
    drawn = whole.at(width).evaluate(DRAWN)
    assert [plot["id"] for plot in drawn] == [plot.name for plot in plots(recorded_trials(), study_file(), IMPORTANCES)]
    assert [plot["id"] for plot in drawn if plot["marks"] < 1] == []
    assert {plot["id"]: plot["cut"] for plot in drawn if plot["cut"]} == {}
    assert {plot["id"]: plot["crowded"] for plot in drawn if plot["crowded"]} == {}


def test_every_trial_and_every_curve_has_its_mark(whole: Opened) -> None:
    marks = {plot["id"]: plot["marks"] for plot in whole.at(1280).evaluate(DRAWN)}
    assert marks["best-so-far"] == 40 + 1  # and the line of the best
    assert marks["importances"] == 8
    assert marks["slice-0"] == 39 + 1  # the best has two


@pytest.mark.parametrize("width", [1280, 400])
def test_page_never_scrolls_sideways_and_wide_tables_do_in_their_own_box(whole: Opened, width: int) -> None:
    page = whole.at(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator(".wide").first
    assert box.evaluate("box => box.scrollWidth > box.clientWidth") == (width == 400)
    box.evaluate("box => { box.scrollLeft = 10_000; }")
    assert page.locator("td", has_text="0.219").evaluate("cell => cell.getBoundingClientRect().right") <= width


def test_table_of_sentences_is_stacked_on_a_telephone(whole: Opened) -> None:
    page = whole.at(400)
    cells = page.locator("#section2 tbody tr:first-child td")
    tops = [cells.nth(number).evaluate("cell => cell.getBoundingClientRect().top") for number in range(4)]
    assert tops == sorted(set(tops))
    said = cells.nth(3).evaluate("cell => getComputedStyle(cell, '::before').content")
    assert said == '"told from: "'
    assert page.locator("#section2 .wide").evaluate("box => box.scrollWidth <= box.clientWidth")


def test_page_asks_for_nothing_and_logs_nothing(whole: Opened) -> None:
    whole.at(1280)
    assert set(whole.events) == {whole.page.url.partition("#")[0]}


def test_navigation_leads_to_every_section_and_to_the_plots(whole: Opened) -> None:
    page = whole.at(1280)
    links = page.locator("nav a")
    assert links.all_text_contents() == [*(section.title for section in SECTIONS), "Plots"]
    for number in range(links.count()):
        assert page.locator(links.nth(number).get_attribute("href") or "").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_of_plots_are_legible_on_a_background_that_follows_the_scheme(whole: Opened, scheme: Any) -> None:
    whole.page.emulate_media(color_scheme=scheme)
    background, *texts = (luminance(colour) for colour in whole.at(1280).evaluate(LEGIBLE))
    for text in texts:
        assert (background > text) == (scheme == "light")
        assert (max(background, text) + 0.05) / (min(background, text) + 0.05) > 7  # as WCAG AAA has it


def luminance(colour: str) -> float:
    red, green, blue = (math.pow(int(part) / 255, 2.2) for part in re.findall(r"\d+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_paper_shows_no_navigation_and_all_of_a_table(whole: Opened) -> None:
    whole.page.emulate_media(media="print")
    page = whole.at(720)
    assert not page.locator("nav").is_visible()
    assert page.locator(".wide").first.evaluate("box => getComputedStyle(box).overflowX") == "visible"
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    page.emulate_media(media="screen")


def test_figure_alone_is_legible_on_white_and_on_black(browser: Browser, whole: Opened) -> None:
    """As optuna-dashboard shows it, without our style."""
    for name in ("best-so-far", "parallel"):
        colour = whole.at(1280).evaluate(f"document.getElementById('{name}').layout.font.color")
        text = luminance(", ".join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5)))
        assert min(1.05 / (text + 0.05), (text + 0.05) / 0.05) > 4.2


@pytest.fixture(scope="module")
def odd(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Hostile names wherever somebody may choose one."""
    sections = [Section(IMAGE, (IMAGE, LINK), ((IMAGE, LINK), ((IMAGE, LINK),)), (IMAGE, LINK))]
    best: dict[str, Any] = {"baseline": IMAGE} | dict.fromkeys(METRICS, 0.6) | made_up_diagnosis()
    values = [{"epochs": 2, "model": IMAGE}, {"epochs": 3, "model": LINK}]
    trials = [trial(0, 0.6, values[0], {5_000: 0.5}, best), trial(1, 0.5, values[1], {5_000: 0.4})]
    choices = {"type": "categorical", "choices": [IMAGE, LINK]}
    return open_page(browser, tmp_path_factory.mktemp("odd"), IMAGE, sections, trials, model=choices)


def test_hostile_names_do_nothing_and_show_as_text(odd: Opened) -> None:
    page = odd.page
    assert page.locator("h1").text_content() == IMAGE
    assert page.locator("nav a").first.text_content() == IMAGE
    for part in ("h2", "p", "th", "td", "li"):
        assert page.locator(f"#section0 {part}").first.text_content() == IMAGE
    assert page.locator("#section0 td").nth(1).text_content() == LINK
    assert page.locator("#section0 img, #section0 td a, .plots img, .plots a").count() == 0
    assert odd.events == [page.url]


def test_hostile_choice_shows_as_text_where_it_is_pointed_at(odd: Opened) -> None:
    page = odd.page
    plot = page.locator(".small section", has=page.get_by_role("heading", name="model", exact=True))
    plot.locator(".point").first.hover(force=True)
    plot.locator(".hovertext").first.wait_for()
    assert IMAGE[:20] in (plot.locator(".hovertext").first.text_content() or "")
    assert odd.events == [page.url]


def test_report_without_plots_brings_no_library(browser: Browser, tmp_path: Path) -> None:
    opened = open_page(browser, tmp_path, "by hand", SECTIONS, [])
    assert opened.page.locator("h2").all_text_contents()[: len(SECTIONS)] == [section.title for section in SECTIONS]
    opened.page.close()
