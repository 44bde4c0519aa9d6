"""The report in a browser, where there is one: it runs without errors, sorts and filters, and fits a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from optidel_hf.publishing.report import build_report


playwright = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
NAMES = ("chromium-headless-shell", "chromium", "google-chrome")


@pytest.fixture(scope="module")
def player() -> Iterator[Any]:
    try:
        started = playwright.sync_playwright().start()
    except Exception as error:  # a bare one: playwright has none of its own for a driver that does not start
        pytest.skip(f"playwright's driver does not start (slim images lack libatomic1): {str(error).splitlines()[0]}")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def browser(player: Any) -> Iterator[Any]:
    """Playwright's own Chromium, else the system's."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    try:
        started = player.chromium.launch(executable_path=path, args=["--no-sandbox"])
    except playwright.Error as error:
        pytest.skip(f"no Chromium here (`playwright install chromium`): {str(error).splitlines()[0]}")
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(browser: Any, every_part: dict[str, Any]) -> Any:
    """The report of a run that has every part; what goes wrong or is asked for is listed in `page.told`."""
    opened = browser.new_page()
    opened.told = []
    opened.on("console", lambda message: opened.told.append(message.text))
    opened.on("pageerror", lambda error: opened.told.append(str(error)))
    opened.on("request", lambda request: opened.told.append(request.url))
    opened.goto(build_report(**every_part).as_uri())
    return opened


def shown(page: Any, column: int = 1) -> list[str]:
    rows = page.locator("#evidence table.filtered").first.locator("tbody tr:visible")
    return rows.locator(f":scope > :nth-child({column})").all_inner_texts()


def test_opens_without_an_error_and_loads_itself_alone(page: Any) -> None:
    assert [told for told in page.told if not told.startswith("data:")] == [page.url]


def test_sorts_both_ways_and_says_so(page: Any) -> None:
    head = page.locator("#evidence table.filtered").first.locator("thead th", has_text="mean IoU")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    upwards = [float(text.split()[0]) for text in shown(page, 7)]
    assert upwards == sorted(upwards)
    assert len(set(upwards)) > 3
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text.split()[0]) for text in shown(page, 7)] == upwards[::-1]


def test_what_was_not_measured_stays_last(page: Any) -> None:
    head = page.locator("#evidence table.filtered").first.locator("thead th", has_text="minus full")
    for _ in range(2):
        head.locator("button").click()
        texts = shown(page, 9)
        assert texts[-2:] == ["–", "–"]  # of the full pool itself, in both modes
        assert "–" not in texts[:-2]


def test_filters_rows_and_charts(page: Any) -> None:
    form = page.locator("form.filters")
    form.locator("select[name=arm]").select_option("optidel")
    form.locator("select[name=mode]").select_option("probe")
    assert shown(page) == ["optidel", "optidel"]
    assert form.locator("output").inner_text() == "2 of 12 rows"
    marks = page.locator("#evidence svg [data-arm]")
    assert {mark.get_attribute("data-arm") for mark in marks.all() if mark.is_visible()} == {"optidel"}
    costs = page.locator("#evidence table.filtered").nth(1).locator("tbody tr:visible")
    assert costs.count() == 2  # which has no modes
    for name in ("arm", "mode"):
        form.locator(f"select[name={name}]").select_option("")
    assert len(shown(page)) == 12


def test_works_by_keyboard(page: Any) -> None:
    head = page.locator("#strategies thead th").first
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"


def test_a_tile_tells_its_source_under_the_pointer(page: Any) -> None:
    cell = page.locator("#mosaics .cells span").first
    cell.hover()
    assert "px square at (" in cell.get_attribute("title")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_fits_a_phone_and_the_dark(page: Any, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    dark = [sum(map(int, colour[4:-1].split(","))) < 3 * 128 for colour in colours]
    assert dark == ([True, False] if scheme == "dark" else [False, True])
