"""The page in a real browser: sorting, filtering, keyboard, themes, phones; nothing is requested and nothing goes wrong.

Needs Chromium, Chrome or a relative on the PATH (Debian: ``apt install chromium``), or the one of ``playwright install chromium``, or one that
``$CHROMIUM`` names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, sync_playwright

from scatterdp.report.drawing import DARK, LIGHT
from scatterdp.report.page import write_report
from scatterdp.report.runs import find_runs

_NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "brave-browser",
)
_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/snap/bin/chromium",
)
_MANY = 108


def browser_path(playwright: Playwright) -> str | None:
    """A browser of Chromium's kind on this machine."""
    found = [
        os.environ.get("CHROMIUM"),
        *(shutil.which(name) for name in _NAMES),
        *_PLACES,
        playwright.chromium.executable_path,
    ]
    return next((path for path in found if path and os.path.exists(path)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = browser_path(playwright)
        if path is None:
            pytest.skip(f"no browser: none of {', '.join(_NAMES)} is on the PATH (Debian: apt install chromium)")
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(finished_runs, tmp_path_factory) -> Path:
    """A page about 108 runs on the digits, and one on someone's own images."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(_MANY):
        run = folder / "runs" / f"run{number}"
        shutil.copytree(finished_runs / "seed0", run, ignore=shutil.ignore_patterns("*.safetensors", "*.png"))
        for file, change in (
            ("summary.json", {"test_accuracy": 0.5 + ((number * 37) % _MANY) / 1000}),
            ("config.json", {"seed": number}),
        ):
            values = json.loads((run / file).read_text()) | change
            if file == "summary.json":
                values["plan"]["lr"] = float(2 + number % 3)
            (run / file).write_text(json.dumps(values))
    shutil.copytree(finished_runs / "own", folder / "runs" / "own")
    write_report(find_runs([folder / "runs"]), folder / "report.html")
    return folder / "report.html"


class Visit:
    """A page that is open, and what it did beside showing itself."""

    def __init__(self, page: Page, report: Path) -> None:
        self.page = page
        self.messages: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self._note(message))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(report.as_uri())

    def _note(self, message: ConsoleMessage) -> None:
        self.messages.append(message.text)

    def column(self, title: str) -> list[str]:
        """The visible texts of a column of the results."""
        titles = [text.strip() for text in self.page.locator("#results thead button").all_inner_texts()]
        cells = f"#results tbody tr:not([hidden]) > :nth-child({titles.index(title) + 1})"
        return [text.strip() for text in self.page.locator(cells).all_inner_texts()]

    def heading(self, title: str):
        return self.page.locator("#results thead th").filter(has_text=title)


@pytest.fixture
def visit(browser, report, request) -> Iterator[Visit]:
    options = getattr(request, "param", {})
    context = browser.new_context(**options)
    opened = Visit(context.new_page(), report)
    yield opened
    assert opened.messages == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [report.as_uri()]
    context.close()


def test_it_is_small_enough_to_send(report):
    assert report.stat().st_size < 10e6


def test_a_click_sorts_by_number_and_another_turns_it_round(visit):
    before = visit.column("Test accuracy (%)")
    heading = visit.heading("Test accuracy")
    assert heading.get_attribute("aria-sort") == "none"
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    rising = visit.column("Test accuracy (%)")
    assert rising == sorted(before, key=float) != before
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert visit.column("Test accuracy (%)") == rising[::-1]


def test_names_are_sorted_as_people_count(visit):
    visit.heading("Run").get_by_role("button").click()
    assert visit.column("Run")[:4] == ["own", "run0", "run1", "run2"]
    assert visit.column("Run")[-1] == "run107"


def test_one_column_at_a_time_is_sorted_and_what_is_not_known_comes_last(visit):
    for _ in range(2):
        visit.heading("Seed").get_by_role("button").click()
        assert visit.column("Seed")[-1] == "kept back"
    assert visit.column("Seed")[:2] == ["107", "106"]
    visit.heading("Model").get_by_role("button").click()
    assert visit.page.locator("#results [aria-sort=ascending], #results [aria-sort=descending]").count() == 1


def test_words_filter(visit):
    field = visit.page.get_by_label("Show runs with the words")
    field.fill("RUN10 digits")
    assert visit.column("Run") == ["run10", *(f"run{number}" for number in range(100, 108))]
    assert visit.page.locator("#filter-count").inner_text() == f"9 of {_MANY + 1} runs"
    field.fill("nothing like that")
    assert visit.column("Run") == []
    field.fill("")
    assert len(visit.column("Run")) == _MANY + 1


def test_a_data_set_filters_and_sorting_keeps_it(visit):
    visit.page.get_by_label("Data set", exact=True).select_option(label="own")
    assert visit.column("Run") == ["own"]
    visit.heading("Run").get_by_role("button").click()
    assert visit.column("Run") == ["own"]


def test_the_keyboard_reaches_and_sorts(visit):
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.textContent") == "Skip to the results"
    visit.page.get_by_label("Show runs with the words").focus()
    for _ in range(10):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.closest('th')?.textContent.trim()") == "ε":
            break
    outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    visit.page.keyboard.press("Enter")
    assert visit.heading("ε").get_attribute("aria-sort") == "ascending"
    visit.page.keyboard.press("Space")
    assert visit.heading("ε").get_attribute("aria-sort") == "descending"


def test_a_runs_name_opens_its_certificate(visit):
    details = visit.page.locator("details.run")
    assert details.count() == _MANY + 1
    assert visit.page.locator("details.run[open]").count() == 0
    visit.page.get_by_role("link", name="run5", exact=True).click()
    opened = visit.page.locator("details.run[open]")
    assert opened.count() == 1
    assert opened.locator("summary b").first.inner_text() == "run5"
    assert opened.get_by_text("python -m scatterdp.baselines").is_visible()
    assert opened.get_by_role("heading", name="What is promised").is_visible()


def test_a_name_that_is_a_script_stays_a_name(visit):
    assert visit.page.title() == "Differentially private runs"
    visit.page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert visit.page.get_by_text("document.title='taken'").first.is_visible()


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


COLOURS = """() => {
  const text = document.querySelector("figure svg text");
  return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color, getComputedStyle(text).fill];
}"""


@pytest.mark.parametrize(
    ("visit", "first", "after"),
    [({"color_scheme": "light"}, LIGHT, DARK), ({"color_scheme": "dark"}, DARK, LIGHT)],
    indirect=["visit"],
    ids=["light", "dark"],
)
def test_page_and_figures_follow_the_theme_and_the_button(visit, first, after):
    assert visit.page.evaluate(COLOURS) == [rgb(first["paper"]), rgb(first["ink"]), rgb(first["ink"])]
    button = visit.page.locator("#theme")
    for _ in range(2 if first is LIGHT else 1):  # system → light → dark
        button.click()
    assert visit.page.evaluate(COLOURS) == [rgb(after["paper"]), rgb(after["ink"]), rgb(after["ink"])]


@pytest.mark.parametrize("visit", [{"viewport": {"width": 360, "height": 740}}], indirect=True, ids=["phone"])
def test_a_phone_scrolls_the_table_and_not_the_page(visit):
    visit.page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    width = visit.page.evaluate("document.documentElement.scrollWidth")
    assert width == 360
    box = visit.page.locator(".box").first
    assert box.evaluate("(element) => element.scrollWidth > element.clientWidth")
    box.focus()
    for _ in range(5):
        visit.page.keyboard.press("ArrowRight")
    for _ in range(100):  # scrolling is smooth
        if box.evaluate("(element) => element.scrollLeft"):
            break
        visit.page.wait_for_timeout(50)
    assert box.evaluate("(element) => element.scrollLeft") > 0
    smallest = visit.page.evaluate(
        "Math.min(...[...document.querySelectorAll('figure:not(.wide) svg text')].map((text) => text.getBoundingClientRect().height))"
    )
    assert smallest > 7.5


def test_without_scripts_everything_is_there_to_read(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#results tbody tr").count() == _MANY + 1
    assert not page.locator("#theme").is_visible()
    page.locator("details.run > summary").first.click()
    assert page.locator("details.run[open]").count() == 1
    context.close()
