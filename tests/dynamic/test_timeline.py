"""The timeline: what is drawn where, as a picture and as a page that needs nothing else."""

import base64
import hashlib
import json
import math
import struct
import sys

import numpy as np
import pytest
from colour_contrast import contrast
from html_structure import Structure
from made_up_run import HOSTILE, Writer, realistic

from deepseek_hpf.dynamic import timeline_looks as looks
from deepseek_hpf.dynamic.event_file import read_events
from deepseek_hpf.dynamic.timeline import MOST_POINTS, ROWS, timeline_of
from deepseek_hpf.dynamic.timeline_page import render_timeline
from deepseek_hpf.dynamic.timeline_plot import draw_timeline
from deepseek_hpf.errors import ConfigError

pytestmark = pytest.mark.pure


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


@pytest.fixture
def writer(path):
    made = Writer(path, ["a", "b"])
    made.start()
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_events(realistic(tmp_path_factory.mktemp("run") / "events.jsonl"))


def png_size(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def hostile(path):
    writer = Writer(path, [HOSTILE, "$x_1$", "a/b", "名"], model=HOSTILE)
    writer.start()
    for step in range(50, 501, 50):
        loss = (math.nan, math.inf, 1.0, 10.0 ** (step / 10))[step // 50 % 4]
        writer.window(step, loss=loss, scale=0.0, gradient_norm=math.nan, epoch=step // 50)
        writer.overflow(step - 1, HOSTILE, cause=HOSTILE)
        writer.move(step, HOSTILE, HOSTILE, HOSTILE, kind="phase")
    return read_events(path)


def begun(path):
    Writer(path, ["stem"]).start()
    return read_events(path)


def one_window(path):
    writer = Writer(path, ["stem"])
    writer.start()
    writer.window(50, loss=1.0)
    return read_events(path)


def no_blocks(path):
    writer = Writer(path, [])
    writer.start()
    writer.window(50, loss=1.0, scale=8.0)
    return read_events(path)


ODD = [hostile, begun, one_window, no_blocks]


def test_bars_cover_the_run(run):
    timeline = timeline_of(run)
    assert list(timeline.bars) == run.blocks
    for bars in timeline.bars.values():
        edges = [bars[0].left, *(bar.right for bar in bars)]
        assert (edges[0], edges[-1]) == (0.0, 1.0)
        assert [bar.left for bar in bars[1:]] == edges[1:-1]


def test_every_event_is_in_a_mark(run):
    timeline = timeline_of(run)
    assert set(timeline.marks) <= set(ROWS) == set(looks.SHAPES)
    assert sum(m.count for marks in timeline.marks.values() for m in marks) == len(run.events)
    for marks in timeline.marks.values():
        places = [mark.x for mark in marks]
        assert all(0 <= place <= 1 for place in places)
        assert np.all(np.diff(places) > 0)
    assert len(timeline.resumes) == 1
    assert [label for _, label in timeline.epochs] == ["1", "2", "3"]


def test_events_that_are_too_close_are_one_mark_with_all_their_reasons(writer, path):
    for step in range(100, 110):
        writer.overflow(step, "a/dense")
    writer.window(10_000)
    (mark,) = timeline_of(read_events(path)).marks["skipped"]
    assert (mark.count, mark.x) == (10, 0.01)
    lines = mark.text.split("\n")
    assert lines[0].startswith("Step 100: a/dense step skipped: a/dense in the backward pass")
    assert lines[-1] == "… and 6 more up to step 109"


def test_curves_have_gaps_where_values_have_no_place(writer, path):
    losses = [1.0, 2.0, math.nan, 3.0, math.inf, 4.0, 5.0]
    for index, loss in enumerate(losses, start=1):
        writer.window(index * 100, loss=loss, gradient_norm=0.0 if index == 1 else 2.0)
    loss, norm = timeline_of(read_events(path)).curves
    assert (loss.title, norm.title) == ("Loss", "Gradient norm (L2, log₁₀)")
    assert [len(piece) for piece in loss.pieces()] == [2, 1, 2]
    assert loss.lost == pytest.approx((3 / 7, 5 / 7), abs=0.005)
    assert [len(piece) for piece in norm.pieces()] == [6]
    assert norm.lost == ()


def test_a_loss_of_many_magnitudes_is_drawn_on_a_logarithmic_axis(writer, path):
    for step in (100, 200, 300):
        writer.window(step, loss=10.0 ** (step / 50))
    loss = timeline_of(read_events(path)).curves[0]
    assert loss.title == "Loss (log₁₀)"
    heights = [y for _, y in loss.pieces()[0]]
    assert np.diff(heights) == pytest.approx(np.diff(heights)[0])


def test_lines_that_would_hide_the_curves_are_left_out(writer, path):
    for step in range(1, 62):
        writer.move(10 * step, "a", "float32" if step % 2 else "base")
        writer.window(10 * step, loss=1.0)
    few, many = read_events(path).between(None, 500), read_events(path)
    assert len(timeline_of(few).switches) == 49
    assert timeline_of(many).switches == ()
    assert timeline_of(many).marks["promoted"]


def test_of_many_points_the_extremes_stay(writer, path):
    random = np.random.default_rng()
    values = random.lognormal(size=5000)
    for step, value in enumerate(values, start=1):
        writer.window(step, steps=1, loss=math.nan if step == 77 else float(value))
    curve = timeline_of(read_events(path)).curves[0]
    assert len(curve.points) <= 1.5 * MOST_POINTS
    heights = [point.y for point in curve.points if point.y is not None]
    kept = np.delete(values, 76)
    assert curve.axis.at(kept.max()) in heights
    assert curve.axis.at(kept.min()) in heights
    assert any(point.y is None for point in curve.points)


def test_the_picture_grows_with_its_blocks(run, path):
    writer = Writer(path, [f"block_{i}" for i in range(40)])
    writer.start()
    writer.window(50, loss=1.0)
    width, height = png_size(draw_timeline(timeline_of(run)))
    wide, tall = png_size(draw_timeline(timeline_of(read_events(path))))
    assert wide == width
    assert tall > height


@pytest.mark.parametrize("make", ODD)
def test_odd_runs_have_a_picture(path, make):
    assert png_size(draw_timeline(timeline_of(make(path)))) > (1000, 100)


@pytest.mark.parametrize("make", ODD)
def test_odd_runs_have_a_page(path, make):
    structure = Structure(render_timeline(make(path)))
    text = " ".join(structure.text)
    assert "None" not in text.replace("None yet", "")
    assert "nan" not in " ".join(structure.values("d"))


def test_the_page_tells_every_reason(run):
    page = Structure(render_timeline(run))
    tips = "\n".join(page.values("data-tip"))
    text = " ".join(page.text)
    for decision in run.decisions:
        assert decision.reason in tips
        assert decision.reason in text
    labels = [v for v in page.values("aria-label") if v.startswith("Step ")]
    assert len(labels) == sum(map(len, timeline_of(run).marks.values()))
    rows = [value for value in page.values("class") if value == "row block"]
    assert len(rows) == len(run.blocks)
    readings = json.loads(page.values("data-readings")[0])
    assert len(readings) == len(run.windows)
    assert readings[0][1].startswith("Step 50: loss ")


def test_the_page_needs_nothing_outside_and_names_are_text(path):
    page = render_timeline(hostile(path))
    structure = Structure(page)
    links = [v for name in ("src", "href", "srcset") for v in structure.values(name)]
    assert all(value.startswith(("#", "data:,")) for value in links)
    assert not any(trace in page for trace in ("http:", "https:", "@import", "url("))
    assert structure.tags.count("script") == 1
    assert not [name for _, name, _ in structure.attributes if name.startswith("on")]
    assert "alert" not in "".join(structure.scripts)
    assert HOSTILE in structure.text


def test_only_the_pages_own_script_may_run(run):
    structure = Structure(render_timeline(run))
    digest = hashlib.sha256("".join(structure.scripts).encode()).digest()
    policy = next(v for v in structure.values("content") if "default-src" in v)
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy


def test_the_page_is_for_light_and_dark_and_for_phones(run):
    page = render_timeline(run)
    for look in ("width=device-width", "prefers-color-scheme: dark", "max-width: 47.98rem"):
        assert look in page
    assert len(page) < 200_000


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_are_told_apart(scheme):
    """WCAG 2.1 asks for 3 between graphical objects that touch, and 4.5 for text."""
    ground = looks.BACKGROUND[scheme]
    for shape in looks.SHAPES.values():
        assert contrast(shape.colour[scheme], ground) > 3
    for text in (looks.TEXT, looks.QUIET, looks.SKIP):
        assert contrast(text[scheme], ground) > 4.5
    base, float32 = (looks.level_colours(["base", "float32"])[name][0][scheme]
                     for name in ("base", "float32"))  # fmt: skip
    assert contrast(base, float32) > 3
    assert contrast(float32, ground) > 3


def test_policies_of_a_schedule_have_colours_of_their_own():
    found = looks.level_colours(["base", "critical", "float32", "mixed_bfloat16", "other"])
    assert len(set(found.values())) == 5
    assert len(looks.level_colours(map(str, range(20)))) == 20


@pytest.mark.parametrize(
    ("module", "draw"),
    [
        ("matplotlib.figure", lambda run: draw_timeline(timeline_of(run))),
        ("jinja2", render_timeline),
    ],
)
def test_a_package_that_is_not_there_is_named(run, monkeypatch, module, draw):
    from deepseek_hpf.dynamic import timeline_page

    timeline_page._environment.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"deepseek_hpf\[report\]"):
        draw(run)
