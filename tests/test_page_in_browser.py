"""The page in a real browser: it sorts, filters, fits a phone, prints, and can be read by all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recipes import recipe_values, write_recipe

import mergetomix as m2m

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install mergetomix[dev]"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two targets over four datasets: its ranking has more lines than fit a look."""
    folder = tmp_path_factory.mktemp("report")
    values = recipe_values(folder, ("a", "b", "c", "d"), ("t", "u"))
    m2m.run(write_recipe(folder, values))
    return folder / "run" / "report.html"


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    with browser.new_context() as context:
        opened, errors = context.new_page(), list[str]()
        asked = list[str]()
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(report.as_uri())
        yield opened
        assert errors == []
        assert asked == [report.as_uri()]


def column(page: Any, table: str, place: int) -> list[str]:
    cells = page.locator(f"#{table} tbody tr td:nth-child({place})").all_inner_texts()
    return [str(each) for each in cells]


def test_a_click_sorts_a_table(page: Any) -> None:
    heads = page.locator("#ranking thead th")
    names = heads.all_inner_texts()
    place = names.index("objective") + 1
    before = [float(each) for each in column(page, "ranking", place)]
    button = heads.nth(place - 1).get_by_role("button")
    button.click()
    assert [float(each) for each in column(page, "ranking", place)] == sorted(before, reverse=True)
    button.click()
    assert [float(each) for each in column(page, "ranking", place)] == sorted(before)
    assert heads.nth(place - 1).get_attribute("aria-sort") == "ascending"
    page.locator("#ranking thead th").nth(1).get_by_role("button").press("Enter")
    names = column(page, "ranking", 2)
    assert names == sorted(names, reverse=True)


def test_a_field_filters_a_table(page: Any) -> None:
    page.locator("input[data-filters=ranking]").fill("a + B")
    shown = page.locator("#ranking tbody tr:visible td:nth-child(2)").all_inner_texts()
    assert shown and all("a + b" in each for each in shown)
    assert len(shown) < page.locator("#ranking tbody tr").count() == 15
    page.locator("input[data-filters=ranking]").fill("b a")
    assert page.locator("#ranking tbody tr:visible").count() == len(shown)


def test_it_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.evaluate("document.querySelector('h1').textContent += '/a-long-folder'.repeat(20)")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    box = page.locator(".headline").bounding_box()
    assert box["y"] < 400


def test_dark_and_light_differ_and_both_are_legible(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    backgrounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found = Axe().run(page).response["violations"]
        assert [f"{each['id']}: {each['nodes'][0]['html']}" for each in found] == []
    assert backgrounds[0] != backgrounds[1]


def test_it_prints_whole(page: Any) -> None:
    page.emulate_media(media="print")
    assert not page.locator(".filter").first.is_visible()
    assert len(page.pdf()) > 10_000


def test_a_screenshot_shows_something(page: Any, tmp_path: Path) -> None:
    from PIL import Image

    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    with Image.open(tmp_path / "page.png") as image:
        assert image.height > 1500 and len(image.convert("L").getcolors() or []) > 10
