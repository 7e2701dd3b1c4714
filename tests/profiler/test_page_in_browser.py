"""The page in a real browser: Debian's chromium, headless."""

import pytest
from chromium import run, show, started
from made_up_report import HOSTILE, report

from deepseek_hpf.profiler.page import BACKGROUNDS, render_page

pytestmark = [pytest.mark.pure, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser():
    with started() as driver:
        yield driver


@pytest.fixture
def page(browser, tmp_path):
    """The page of hostile names, opened anew at a desktop's width in light mode."""
    path = tmp_path / "report.html"
    path.write_text(render_page(report(HOSTILE)), encoding="utf-8")
    show(browser, 1280, "light")
    browser.get(path.as_uri())
    yield browser
    assert browser.get_log("browser") == []


COLUMN = """
const rows = [...document.querySelector('[aria-labelledby=' + arguments[0] + '] tbody').rows];
return rows.filter((row) => !row.hidden).map((row) => row.cells[arguments[1]].dataset.sort
  ?? row.cells[arguments[1]].textContent)
"""


def click_head(browser, section, column):
    selector = f"[aria-labelledby={section}] th:nth-child({column + 1}) button"
    run(browser, "document.querySelector(arguments[0]).click()", selector)


def test_it_renders_and_no_name_runs(page):
    assert page.title == "Precision of made_up"
    assert run(page, "return document.scripts.length") == 1
    assert HOSTILE[0] in page.find_element("tag name", "body").text
    drawn = run(page, "return document.querySelector('.chain svg').getBoundingClientRect().height")
    assert drawn > 300


@pytest.mark.parametrize("column", [3, 4])
def test_a_click_on_a_head_sorts_numbers(page, column):
    values = [float(value) for value in run(page, COLUMN, "ranges", column)]
    click_head(page, "ranges", column)
    assert [float(v) for v in run(page, COLUMN, "ranges", column)] == sorted(values, reverse=True)
    click_head(page, "ranges", column)
    assert [float(v) for v in run(page, COLUMN, "ranges", column)] == sorted(values)


def test_words_are_sorted_and_the_given_order_comes_back(page):
    given = run(page, COLUMN, "conflicts", 0)
    click_head(page, "conflicts", 0)
    assert run(page, COLUMN, "conflicts", 0) == sorted(given)
    select = "[aria-labelledby=conflicts] select"
    run(
        page,
        "const s = document.querySelector(arguments[0]); s.value = '-1';"
        "s.dispatchEvent(new Event('change'))",
        select,
    )
    assert run(page, COLUMN, "conflicts", 0) == given


def test_words_filter_the_rows(page):
    every = run(page, COLUMN, "ranges", 0)
    search = page.find_element("css selector", "[aria-labelledby=ranges] input")
    search.send_keys("STEM output")
    shown = run(page, COLUMN, "ranges", 0)
    assert set(shown) == {"stem"}
    assert len(shown) == 2  # output, output gradient
    count = page.find_element("css selector", "[aria-labelledby=ranges] output")
    assert count.text == f"2 of {len(every)} rows"
    search.send_keys("nothing like it")
    assert run(page, COLUMN, "ranges", 0) == []
    search.clear()
    search.send_keys(" ")
    assert run(page, COLUMN, "ranges", 0) == every


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_nothing_is_wider_than_the_screen(page, width):
    show(page, width, "light")
    assert run(page, "return document.documentElement.scrollWidth") <= width
    widest = """
    return Math.max(...[...document.querySelectorAll('td, p, h1, svg, .tools')]
      .map((element) => element.getBoundingClientRect().right))
    """
    assert run(page, widest) <= width


def test_on_a_phone_cells_stand_below_each_other_with_their_titles(page):
    show(page, 375, "light")
    label = """
    const cell = document.querySelector('[aria-labelledby=conflicts] td:nth-child(2)');
    return getComputedStyle(cell, '::before').content
    """
    assert run(page, label) == '"Where"'
    size = "return parseFloat(getComputedStyle(document.querySelector('td')).fontSize)"
    assert run(page, size) >= 14


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_systems_colours(page, scheme):
    show(page, 1280, scheme)
    code = BACKGROUNDS[scheme]
    parts = ", ".join(str(int(code[i : i + 2], 16)) for i in (1, 3, 5))
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert run(page, ground) == f"rgb({parts})"
