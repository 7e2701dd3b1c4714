"""The timeline's page in a real browser: nothing overlaps, and reasons show."""

import math

import pytest
from chromium import run, show, started
from made_up_run import HOSTILE, Writer, realistic

from deepseek_hpf.dynamic.event_file import read_events
from deepseek_hpf.dynamic.timeline_looks import BACKGROUND
from deepseek_hpf.dynamic.timeline_page import render_timeline

pytestmark = [pytest.mark.pure, pytest.mark.slow]

# Texts and marks that lie over one another, by more than the leading of a line.
OVERLAPS = """
const rectangle = (element) => {
  if (element.matches('.mark')) return element.getBoundingClientRect();
  const range = document.createRange();
  range.selectNodeContents(element);
  return range.getBoundingClientRect();
};
const selector = '.name, .title b, .lost, .numbers span, .legend li, .reading, h1, h2, p, .mark';
const all = [...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length);
const boxes = all.map(rectangle);
const found = [];
boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
  const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  if (across > 0.5 && down > 2.5) found.push([all[i].textContent, all[i + 1 + j].textContent]);
}));
return found
"""


@pytest.fixture(scope="module")
def browser():
    with started() as driver:
        yield driver


def crowded(path):
    """A run of many epochs, plans and blocks whose loss is lost."""
    writer = Writer(path, [HOSTILE, *(f"block_{index}" for index in range(40))])
    writer.start()
    for step in range(50, 20_001, 50):
        loss = math.nan if step % 3 == 0 else 10.0 ** (step / 2000)
        writer.window(step, loss=loss, scale=2.0 ** (step // 900), epoch=step // 200)
        writer.overflow(step - 1, HOSTILE)
        writer.move(step, HOSTILE, "base" if step % 100 else "critical", HOSTILE)
    return path


def one_window(path):
    writer = Writer(path, ["stem"])
    writer.start()
    writer.window(50, loss=1.0)
    return path


@pytest.fixture(params=[realistic, crowded, one_window])
def page(browser, tmp_path, request):
    """A page, opened anew at a desktop's width in light mode."""
    path = tmp_path / "timeline.html"
    run_of = read_events(request.param(tmp_path / "events.jsonl"))
    path.write_text(render_timeline(run_of), encoding="utf-8")
    show(browser, 1280, "light")
    browser.get(path.as_uri())
    yield browser
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_nothing_overlaps_or_is_wider_than_the_screen(page, width):
    show(page, width, "light")
    assert run(page, OVERLAPS) == []
    assert run(page, "return document.documentElement.scrollWidth") <= width
    widest = """
    return Math.max(...[...document.querySelectorAll('.track, .mark, p, h1, td, .numbers span')]
      .map((element) => element.getBoundingClientRect().right))
    """
    assert run(page, widest) <= width


@pytest.mark.parametrize("page", [realistic, crowded], indirect=True)
@pytest.mark.parametrize("width", [320, 1280])
def test_a_mark_tells_its_reason(page, width):
    from selenium.webdriver import ActionChains

    show(page, width, "light")
    tip = page.find_element("id", "tip")
    assert not tip.is_displayed()
    for mark in page.find_elements("css selector", ".mark")[::9]:
        ActionChains(page).move_to_element(mark).perform()
        assert tip.is_displayed()
        assert tip.get_property("textContent") == mark.get_attribute("data-tip")
        box = run(page, "return arguments[0].getBoundingClientRect().toJSON()", tip)
        assert box["left"] >= 0
        assert box["right"] <= width
    run(page, "document.querySelector('.mark').focus()")
    assert tip.text.startswith("Step ")
    run(page, "document.activeElement.blur()")
    assert not tip.is_displayed()


@pytest.mark.parametrize("page", [realistic], indirect=True)
def test_the_figures_follow_the_pointer(page):
    from selenium.webdriver import ActionChains

    plot = page.find_element("css selector", ".plot")
    reading = page.find_element("css selector", ".reading")
    ActionChains(page).move_to_element(plot).perform()
    assert reading.text.startswith("Step 1,500: loss ")
    ActionChains(page).move_to_element_with_offset(plot, -plot.size["width"] // 2 + 1, 0).perform()
    assert reading.text.startswith("Step 50: loss ")


@pytest.mark.parametrize("page", [one_window], indirect=True)
@pytest.mark.parametrize(("scheme", "index"), [("light", 0), ("dark", 1)])
def test_it_follows_the_systems_colours(page, scheme, index):
    show(page, 1280, scheme)
    parts = ", ".join(str(int(BACKGROUND[index][i : i + 2], 16)) for i in (1, 3, 5))
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert run(page, ground) == f"rgb({parts})"
