"""The site builds without a warning; in a browser nothing sticks out, and all code can be read."""

import re
import subprocess
import sys

import pytest
from chromium import run, show, started
from colour_contrast import contrast
from pages import DOCS, PAGES

pytestmark = [pytest.mark.pure, pytest.mark.slow]

ADDRESSES = [page.relative_to(DOCS).with_suffix(".html").as_posix() for page in PAGES]
SIDEWAYS = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
COLOURS = """
const found = {};
for (const span of document.querySelectorAll('.highlight pre span')) {
  if (!span.textContent.trim()) continue;
  const behind = getComputedStyle(span.closest('.highlight')).backgroundColor;
  const box = getComputedStyle(span.closest('pre')).backgroundColor;
  const pair = [getComputedStyle(span).color, box === 'rgba(0, 0, 0, 0)' ? behind : box];
  found[pair.join(';')] = span.className;
}
return found
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    sphinx = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "--keep-going"]
    places = ["-d", str(folder / "trees"), str(DOCS), str(folder / "site")]
    done = subprocess.run([*sphinx, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def browser():
    with started() as driver:
        yield driver


def test_every_page_is_built(site):
    written = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert set(ADDRESSES) <= written
    assert all((site / page).read_text(encoding="utf-8").count("<h1") == 1 for page in ADDRESSES)


def test_references_are_generated(site):
    configuration = (site / "configuration.html").read_text(encoding="utf-8")
    assert "backoff_factor" in configuration
    assert "--error-budget" in (site / "commands.html").read_text(encoding="utf-8")
    assert all("generated:" not in page.read_text("utf-8") for page in site.glob("*.html"))


@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_scrolls_sideways(site, browser, width):
    show(browser, width, "light")
    for page in ADDRESSES:
        browser.get((site / page).as_uri())
        assert run(browser, SIDEWAYS) <= 0, page
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_code_can_be_read(site, browser, scheme):
    show(browser, 1280, scheme)
    seen = {}
    for page in ADDRESSES:
        browser.get((site / page).as_uri())
        seen |= run(browser, COLOURS)
    assert len(seen) > 5
    faint = {
        pair: kind for pair, kind in seen.items() if contrast(*map(as_hex, pair.split(";"))) < 4.5
    }
    assert faint == {}


def as_hex(colour):
    """`#ff0000` of `rgb(255, 0, 0)`."""
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])
