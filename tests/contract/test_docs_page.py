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
    page.on(
        "response",
        lambda response: wrong.append(f"{response.status} {response.url}") if response.status >= 400 else None,
    )
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


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("temperature", "algorithms/dkd/"),
        ("image folder", "data/"),
        ("checkpoint", "fine-tuning/"),
        ("wandb", "track-runs/"),
    ],
)
def test_search_finds(page, address, words, wanted):
    page.goto(f"{address}/")
    page.locator("input.md-search__input").fill(words)
    page.locator(".md-search-result__item").first.wait_for()
    found = page.eval_on_selector_all("a.md-search-result__link", "links => links.map(link => link.href)")
    pages = list(dict.fromkeys(link.split("#")[0].split("?")[0].removeprefix(f"{address}/") for link in found))
    assert wanted in pages[:5]


def test_a_card_is_two_clicks_from_home(page, address):
    page.goto(f"{address}/")
    page.locator("nav.md-nav--primary").get_by_role("link", name="Algorithms", exact=True).click()
    page.locator("article").get_by_role("link", name="kd", exact=True).click()
    page.wait_for_url("**/algorithms/kd/")
    assert "temperature" in page.locator("article").inner_text()


def test_the_three_entries_and_one_picture_of_a_report_are_on_the_home_page(browser, address):
    shown = set()
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
            page.goto(f"{address}/")
            for name in ("Shrink my model", "Compare algorithms", "Invent one"):
                assert page.locator("article").get_by_role("link", name=name, exact=True).is_visible()
            picture = page.locator("article img:visible")
            assert picture.count() == 1
            picture.scroll_into_view_if_needed()
            page.wait_for_function("img => img.naturalWidth > 300", arg=picture.element_handle())
            shown.add(picture.get_attribute("src"))
            page.close()
    assert len(shown) == 4


def test_decisions_are_folded(page, address):
    page.goto(f"{address}/")
    nav = page.locator("nav.md-nav--primary")
    assert nav.get_by_role("link", name="API", exact=True).is_visible()
    first = nav.get_by_role("link", name="0001 One frozen context")
    assert not first.is_visible()
    nav.locator("label", has_text="Decisions").first.click()
    first.wait_for(state="visible")


def listed(page) -> list[str]:
    """The algorithms that the list shows, in its order."""
    return page.locator(".catalogue tbody tr:visible td:first-child").all_inner_texts()


def test_algorithms_are_filtered_and_sorted(page, address):
    page.goto(f"{address}/algorithms/")
    every = listed(page)
    assert len(every) >= 35
    page.select_option("select[name=teachers]", "works without one")
    alone = listed(page)
    assert {"dml", "born_again"} <= set(alone)
    assert not {"kd", "mt_average"} & set(alone)
    page.get_by_role("button", name="Show all").click()
    page.select_option("select[name=labels]", "there are no samples")
    assert listed(page) == ["dafl", "deep_inversion", "zskt"]
    assert page.locator(".catalogue-count").inner_text() == f"3 of {len(every)}"
    page.select_option("select[name=features]", "only answers are read")
    assert listed(page) == ["deep_inversion"]
    page.get_by_role("button", name="Show all").click()
    assert listed(page) == every
    page.select_option("select[name='gain, points']", "at least 1")
    page.select_option("select[name='step, times']", "at most 1.2")
    assert "kd" in listed(page)
    assert not {"takd", "at"} & set(listed(page))
    page.get_by_role("button", name="Show all").click()
    page.fill("input[type=search]", "hinton")
    assert listed(page) == ["kd"]
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("button", name="gain, points").click()
    gains = page.locator(".catalogue tbody td:nth-child(7)").all_inner_texts()
    numbers = [float(text.split()[0]) for text in gains if text]
    assert numbers == sorted(numbers, reverse=True)
    assert gains[: len(numbers)] == [text for text in gains if text], "what was not measured comes last"


def test_without_a_script_the_list_is_a_plain_table(browser, address):
    page = browser.new_page(java_script_enabled=False)
    page.goto(f"{address}/algorithms/")
    assert len(listed(page)) >= 35
    assert page.locator(".catalogue-form").count() == 0
    page.close()


def test_evidence_is_figures_first_and_its_numbers_are_not_broken(page, address):
    page.goto(f"{address}/evidence/")
    first, table = page.locator("figure.drawing svg").first, page.locator("article table").first
    assert first.is_visible()
    assert not table.is_visible()
    page.locator("summary").first.click()
    assert table.is_visible()
    assert first.bounding_box()["y"] < table.bounding_box()["y"]
    lines = """[...document.querySelectorAll('details[open] td')].map(cell => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return new Set([...range.getClientRects()].map(one => Math.round(one.top))).size;
    })"""
    found = page.evaluate(lines)
    assert len(found) >= 8 * 30
    assert max(found) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_scrolls_sideways_on_a_phone(browser, address, scheme):
    """Neither the page nor, where rows become cards, a table; wider tables scroll in themselves."""
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    for place in (
        "",
        "algorithms/",
        "algorithms/kd/",
        "evidence/",
        "recipes/",
        "recipes/digits/kd/",
        "reference/recipe/",
    ):
        page.goto(f"{address}/{place}")
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, place
        wide = "[...document.querySelectorAll('[data-named] td, figure.drawing, article img')]"
        right = f"Math.max(0, ...{wide}.map(one => one.getBoundingClientRect().right))"
        assert page.evaluate(right) <= 390, place
    page.close()


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
