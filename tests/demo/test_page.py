"""The page needs nothing outside itself, is well formed, and shows names as text."""

import base64
import struct
from html.parser import HTMLParser

import pytest
from colour_contrast import contrast
from made_up import NAN, comparison, result, start

from deepseek_hpf.demo.page import render_page
from deepseek_hpf.demo.plots import DARK, LIGHT, NARROW, loss_curves
from deepseek_hpf.demo.records import EpochDone, RunSettings

pytestmark = pytest.mark.pure
VOID = {"meta", "img", "source", "br", "link", "wbr"}


class Structure(HTMLParser):
    """Collects tags, references and text; complains of tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.references, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        links = ("src", "href", "srcset", "action", "data", "poster", "style")
        self.references += [value for name, value in attributes if name in links]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(page):
    structure = Structure()
    structure.feed(page)
    structure.close()
    assert structure.open == []
    return structure


@pytest.fixture(scope="module")
def page():
    return render_page(comparison())


def test_the_page_needs_nothing_outside(page):
    structure = parse(page)
    assert structure.references
    assert all(reference.startswith("data:image/png;base64,") for reference in structure.references)
    without_pictures = page
    for reference in structure.references:
        without_pictures = without_pictures.replace(reference, "")
    for trace in ("http", "//", "@import", "url(", "<script", "<link"):
        assert trace not in without_pictures


def test_the_page_holds_what_was_measured(page):
    structure = parse(page)
    assert structure.tags.count("table") == 2
    assert structure.tags.count("img") == 1
    assert structure.tags.count("source") == 3  # dark, narrow, and both
    text = " ".join(structure.text)
    for figure in ("0.1000 s", "96.00%", "65,536", "mixed_float16", "made up", "0.3333"):
        assert figure in text
    for look in ("width=device-width", "prefers-color-scheme: dark", 'lang="en"', "alt="):
        assert look in page


def test_the_pictures_are_whole(page):
    for reference in parse(page).references:
        png = base64.b64decode(reference.partition(",")[2], validate=True)
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert png.rstrip().endswith(b"IEND\xaeB`\x82")
        width, height = struct.unpack(">II", png[16:24])
        assert width > 500
        assert height > 500


def test_names_are_text_and_not_markup():
    name = "<script>alert('$x^2$ & {{ 7*7 }}')</script>"
    evil = comparison(
        settings=RunSettings(policy="auto", dataset=name, epochs=3),
        policy=result("mixed_float16", 0.1, start=start(reason=name)),
    )
    page = render_page(evil)
    assert "<script" not in page
    text = "".join(parse(page).text)
    assert text.count(name) >= 3
    assert "49" not in text


def test_losses_that_are_not_finite_are_drawn_as_gaps():
    def epochs(loss):
        return tuple(
            EpochDone(epoch=n, loss=loss, test_loss=loss, test_accuracy=0.1, step_seconds=())
            for n in range(2)
        )

    for loss in (NAN, float("inf"), 0.0):
        broken = result("mixed_float16", 0.1, epochs=epochs(loss))
        assert loss_curves(comparison(policy=broken, baseline=broken), size=NARROW)


@pytest.mark.parametrize("style", [LIGHT, DARK])
def test_colours_are_told_from_the_background(style):
    """WCAG 2.1 asks for 4.5 for text and 3 for graphical objects."""
    assert contrast(style.text, style.background) > 4.5
    assert contrast(style.baseline, style.background) > 3
    assert contrast(style.policy, style.background) > 3
