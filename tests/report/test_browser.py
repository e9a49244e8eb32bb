"""The page in a real browser: opens from disk, asks nobody, and its controls work.

Needs Playwright and a Chromium (`pip install playwright`, then Debian's `chromium` or
`playwright install chromium`); skipped where one of them is missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maskclip_bench.report.build import build
from maskclip_bench.results.records import RecordStore
from tests.report.measurements import MADE, classification, saver

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = '<img src=x onerror="document.title=1">'


def executable() -> str | None:
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(
                executable_path=executable(), args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
        except playwright.Error as error:
            pytest.skip(f"no Chromium can be started here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three rows, with hostile names and a long one."""
    root = tmp_path_factory.mktemp("report")
    store = RecordStore(root / "records")
    save = saver(store)
    for task, make in MADE.items():
        for row, shift in (("first", 5), ("second", 2), ("a_row_with_a_rather_long_name", 3)):
            measurement = make(shift)
            if task == "knn/objects":
                measurement = classification(shift + 2, hostile=HOSTILE)
            save(row, task, measurement)
    return build(root / "out", records=store.root, title=f"Toys {HOSTILE}", pictures="keep")


class Visit:
    """A page that notes what it asks for and what it complains of."""

    def __init__(self, browser: Any, index: Path, width: int, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(index.as_uri())
        self.page.wait_for_load_state("load")

    def overflow(self) -> int:
        found = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return int(found)

    def column(self, number: int, table: str = "#table-everything") -> list[str]:
        return [
            text.strip()
            for text in self.page.locator(
                f"{table} tbody tr:visible > :nth-child({number})"
            ).all_inner_texts()
        ]

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(browser: Any, index: Path) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def make(width: int = 1440, **options: Any) -> Visit:
        visits.append(Visit(browser, index, width, **options))
        return visits[-1]

    yield make
    for each in visits:
        assert each.complaints == []
        assert [url for url in each.asked if not url.startswith(("file:", "data:"))] == []
        each.close()


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_nothing_overflows(visit: Callable[..., Visit], width: int) -> None:
    page = visit(width)
    assert page.overflow() <= 0
    page.page.locator("#forest button").first.click()
    page.page.wait_for_selector("#detail:not([hidden])")
    assert page.overflow() <= 0


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_overflows__pages_of_cells(browser: Any, index: Path, width: int) -> None:
    for cell in sorted(index.parent.glob("cells/first/*.html")):
        opened = Visit(browser, cell, width)
        assert opened.overflow() <= 0, cell
        assert opened.complaints == []
        opened.close()


def test_hostile_names_stay_text(visit: Callable[..., Visit]) -> None:
    page = visit().page
    assert page.title() == f"Toys {HOSTILE}"
    assert page.locator("img[src='x']").count() == 0
    page.locator("#forest button").first.click()
    page.wait_for_selector("#detail:not([hidden])")
    assert page.locator("#by-class .barline").count() == 3
    assert HOSTILE in page.locator("#by-image").inner_text()
    assert page.locator("img[src='x']").count() == 0
    assert page.title() == f"Toys {HOSTILE}"


def test_sorting(visit: Callable[..., Visit]) -> None:
    opened = visit()
    button = opened.page.locator("#table-everything [data-sort='1']")
    before = opened.column(1)
    button.click()
    numbers = [float(text.split()[0].rstrip("≈")) for text in opened.column(2)]
    assert numbers == sorted(numbers, reverse=True)
    assert button.locator("xpath=..").get_attribute("aria-sort") == "descending"
    button.click()
    numbers = [float(text.split()[0].rstrip("≈")) for text in opened.column(2)]
    assert numbers == sorted(numbers)
    button.click()
    assert opened.column(1) == before
    opened.page.locator("#table-everything [data-sort='0']").focus()
    opened.page.keyboard.press("Enter")
    assert opened.column(1) == sorted(before)


def test_filtering(visit: Callable[..., Visit]) -> None:
    opened = visit()
    opened.page.locator("#table-everything [data-filter='rows']").fill("SECOND")
    assert opened.column(1) == ["second"]
    opened.page.locator("#table-everything [data-filter='columns']").fill("retrieval")
    heads = opened.page.locator("#table-everything tr.heads th:visible")
    assert heads.count() == 1 + 2 - 1  # the row's name, and the one column of retrieval
    opened.page.locator("#table-everything [data-filter='columns']").fill("")
    assert heads.count() == 5


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("markdown", ["| first |", "| :-- |", "**"]),
        ("latex", [r"\toprule", r"\textbf{", r"\bottomrule", r"a\_row\_with"]),
        ("csv", ["first,", "second,"]),
    ],
)
def test_copying(visit: Callable[..., Visit], form: str, expected: list[str]) -> None:
    opened = visit()
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.page.locator(f"#table-everything [data-copy='{form}']").click()
    opened.page.wait_for_function(
        "document.querySelector('#table-everything .said').textContent === 'Copied.'"
    )
    text = opened.page.evaluate("navigator.clipboard.readText()")
    for part in expected:
        assert part in text, text
    assert len(text.strip().splitlines()) >= 4


def test_pair_selection(visit: Callable[..., Visit]) -> None:
    page = visit().page
    page.select_option("#first", "first")
    page.select_option("#second", "second")
    verdict = page.locator("#verdict")
    assert "first is clearly better than second on" in verdict.inner_text()
    lines = page.locator("#forest button")
    assert lines.count() == 4
    plus = lines.first.locator(".text b").inner_text()
    page.locator("#swap").click()
    assert "second is clearly better than first on" in verdict.inner_text()
    minus = lines.first.locator(".text b").inner_text()
    assert {plus.strip("*")[0], minus.strip("*")[0]} == {"+", "−"}
    lines.first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail:not([hidden])")
    assert "Only second is right: 3 of 24" in page.locator("#by-image").inner_text()
    page.select_option("#first", "first")
    assert "Choose two different rows" in verdict.inner_text()


def test_every_number_is_one_click_from_its_provenance(visit: Callable[..., Visit]) -> None:
    page = visit().page
    page.locator("#table-everything tbody td a").first.click()
    page.wait_for_load_state("load")
    assert "/cells/" in page.url
    assert "Hashes of what the number depends on" in page.locator("main").inner_text()
    page.locator(".back a").click()
    page.wait_for_load_state("load")
    assert page.url.endswith("index.html")


def test_keyboard_reaches_the_content_first(visit: Callable[..., Visit]) -> None:
    page = visit().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    unnamed = page.evaluate(
        """Array.from(document.querySelectorAll('img, [role=img]')).filter(
            (e) => !e.hasAttribute('alt') && !e.getAttribute('aria-label')).length"""
    )
    assert unnamed == 0


def test_values_show_under_the_pointer(browser: Any, index: Path) -> None:
    opened = Visit(browser, index.parent / "cells/first/knn__objects.html", 1440)
    page = opened.page
    curve = page.locator("svg[data-scale]").first
    curve.scroll_into_view_if_needed()
    bubble = page.locator(".bubble")
    assert not bubble.is_visible()
    box = curve.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 22, box["y"] + box["height"] / 2)
    assert "k 200" in bubble.inner_text()
    assert "70.83" in bubble.inner_text()  # 17 of 24
    page.mouse.move(1, 1)
    assert not bubble.is_visible()
    hints = page.locator("svg polygon > title, svg circle > title").all_text_contents()
    assert any("guessing 33.3" in hint for hint in hints)
    assert opened.complaints == []
    opened.close()


def test_dark_and_light(visit: Callable[..., Visit]) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    page = visit(color_scheme="dark").page
    assert page.evaluate(colour) == "rgb(20, 24, 29)"
    page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "Theme: light"
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    page.locator("#theme").click()
    assert page.evaluate(colour) == "rgb(20, 24, 29)"


def test_print(visit: Callable[..., Visit]) -> None:
    page = visit(color_scheme="dark").page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible()
    assert not page.locator(".tools").first.is_visible()
    assert page.locator("#table-everything table").is_visible()
    assert len(page.pdf()) > 10_000


REPEAT = """
    const rows = "#table-everything tr.heads, #table-everything tbody tr";
    for (const row of document.querySelectorAll(rows)) {
        for (const cell of Array.from(row.cells).slice(1)) {
            for (let i = 0; i < 4; i++) row.append(cell.cloneNode(true));
        }
    }
    document.querySelector("#table-everything table").style.setProperty("--fit", 18 / 20);
"""


def test_print__no_column_of_a_wide_table_is_cut_off(browser: Any, index: Path) -> None:
    opened = Visit(browser, index, 794)  # A4 at 96 pixels an inch
    opened.page.evaluate(REPEAT)
    assert opened.page.locator("#table-everything tr.heads th").count() == 21
    opened.page.emulate_media(media="print")
    assert opened.overflow() <= 0
    opened.close()
