"""The built site in a real browser: ``make page-test`` builds it and runs this over a loopback server."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"
sys.path.insert(0, str(ROOT / "tests" / "core"))  # the run of made-up numbers
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
#: Keep the browser from calling home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.page


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the server's log off the test's output."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    assert (SITE / "index.html").is_file(), f"{SITE}: no built site; run `make docs` first"
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def watched(page, address: str) -> list[str]:
    """What goes wrong on a page: requests to elsewhere, errors of scripts, files that are missing."""
    wrong: list[str] = []

    def requested(request) -> None:
        if not request.url.startswith((address, "data:")):
            wrong.append(f"asked for {request.url}")

    page.on("request", requested)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda response: wrong.append(f"{response.status} {response.url}") if not response.ok else None)
    return wrong


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    wrong = watched(page, address)
    yield page
    page.close()
    assert wrong == []


def test_the_control_a_page_that_loads_from_elsewhere_is_found_out(browser, address):
    page = browser.new_page()
    wrong = watched(page, address)
    page.goto(f"{address}/no-such-page/")
    page.set_content('<img src="http://elsewhere.invalid/x.png"><script>throw new Error("broken")</script>')
    page.wait_for_load_state("networkidle")
    page.close()
    assert wrong[0].startswith("404 ")
    assert sorted(wrong[1:]) == ["asked for http://elsewhere.invalid/x.png", "broken"]


def pages() -> list[str]:
    found = (
        sorted(path.parent.relative_to(SITE).as_posix() for path in SITE.rglob("index.html")) if SITE.is_dir() else []
    )
    return found or ["."]


@pytest.mark.parametrize("place", pages())
def test_a_page_opens_and_loads_nothing_from_elsewhere(page, address, place):
    page.goto(f"{address}/{place}/")
    assert page.locator("article h1").count() == 1
    assert len(page.locator("article").inner_text()) > 200
    assert page.locator("article i").count() == 0, "a placeholder such as <i> was taken for markup"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page is wider than the window"
    )


def test_the_whole_site_was_looked_at():
    assert len(pages()) >= 40


def test_search_finds_an_algorithm(page, address):
    page.goto(f"{address}/")
    page.locator("input.md-search__input").fill("temperature")
    page.locator(".md-search-result__item").first.wait_for()
    assert "kd" in page.locator(".md-search-result__list").inner_text()


def test_a_card_is_two_clicks_from_home(page, address):
    page.goto(f"{address}/")
    page.locator("nav.md-nav--primary a", has_text="Algorithms").first.click()
    page.locator("article").get_by_role("link", name="kd", exact=True).click()
    page.wait_for_url("**/algorithms/kd/")
    assert "temperature" in page.locator("article").inner_text()


def test_wide_tables_scroll_on_a_phone(page, address):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{address}/reference/recipe/")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page is wider than the phone"
    )


def test_both_palettes_are_readable(page, address):
    page.goto(f"{address}/")
    page.locator("label[for='__palette_1']").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("label[for='__palette_0']").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


@pytest.mark.parametrize("width", [390, 800, 1000, 1280])
def test_a_report_fits_the_window(browser, tmp_path, width):
    """The report of a run, whose drawings and tables fit a phone too."""
    from run_of_made_up_numbers import ITEMS, REJECTED, RESULTS, VARIANTS, write_run

    from kdzoo.report.writing import write_report

    folder = write_run(tmp_path, report_items=ITEMS, variants=VARIANTS, exports=[*RESULTS["exports"], REJECTED])
    write_report(folder)
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto((folder / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = "[...document.querySelectorAll('svg, table, td')].filter(e => e.getBoundingClientRect().right > innerWidth)"
    assert page.evaluate(f"{cut}.length") == 0
    assert page.locator("td", has_text="71.25").first.is_visible()
    small = """[...document.querySelectorAll('svg')].flatMap(svg => {
        const shown = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
        return [...svg.querySelectorAll('text')].map(t => shown * parseFloat(getComputedStyle(t).fontSize));
    }).filter(size => size < 8.5)"""
    assert page.evaluate(small) == [], "letters of a drawing are too small to read"
    page.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> str:
    """The address of the page of a study with twelve arms, one of whose runs failed."""
    from study_of_made_up_numbers import many_arms

    from kdzoo.study.ranking import ranked
    from kdzoo.study.writing import write_study

    folder = tmp_path_factory.mktemp("study")
    write_study(folder, ranked(many_arms(12)))
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_the_page_of_a_study_fits_the_window(browser, study, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(study)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = "[...document.querySelectorAll('svg, table, td')].filter(e => e.getBoundingClientRect().right > innerWidth)"
    assert page.evaluate(f"{cut}.length") == 0
    small = """[...document.querySelectorAll('svg')].flatMap(svg => {
        const shown = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
        return [...svg.querySelectorAll('text')].map(t => shown * parseFloat(getComputedStyle(t).fontSize));
    }).filter(size => size < 8.5)"""
    assert page.evaluate(small) == [], "letters of a drawing are too small to read"
    assert page.locator(".sort").is_visible() == (width < 992), "heads sort where they are shown, a choice elsewhere"
    assert errors == []
    page.close()


def test_the_ranking_of_a_study_sorts(browser, study):
    numbers = """i => [...document.querySelector('#ranking').tBodies[0].rows].map(row => row.cells[i].dataset.value)
        .map(value => value === undefined ? null : Number(value))"""
    page = browser.new_page(viewport={"width": 1280, "height": 844})
    page.goto(study)
    heads = page.locator("#ranking thead th")
    latency = heads.count() - 1
    page.locator("#ranking thead button").nth(latency).click()
    found = page.evaluate(numbers, latency)
    assert found == sorted(found)
    assert heads.nth(latency).get_attribute("aria-sort") == "ascending"
    page.locator("#ranking thead button").nth(latency).click()
    assert page.evaluate(numbers, latency) == found[::-1]
    page.locator("#ranking thead button").nth(2).click()
    accuracy = page.evaluate(numbers, 2)
    assert accuracy == sorted(accuracy, reverse=True), "the most accurate first"
    page.close()
    without = browser.new_context(java_script_enabled=False)
    page = without.new_page()
    page.goto(study)
    assert page.locator("#ranking tbody tr").count() == 12
    without.close()
