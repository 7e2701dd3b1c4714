"""The page: whole in one file, well formed, and names are text wherever they stand."""

import base64
import hashlib
import itertools
import re

import pytest
from colour_contrast import contrast
from html_structure import Structure
from made_up_report import HOSTILE, census, conflict, range_row, report

from deepseek_hpf.profiler.findings import Edge
from deepseek_hpf.profiler.page import (
    BACKGROUNDS,
    COLOURS,
    HIGHEST,
    LOWEST,
    colour_of,
    histogram_path,
    render_page,
)
from deepseek_hpf.profiler.page_chain import BOX, ROW, chain_of
from deepseek_hpf.profiler.report import ProfileReport

pytestmark = pytest.mark.pure


@pytest.fixture(scope="module")
def hostile():
    return render_page(report(HOSTILE))


def test_the_page_has_all_parts(hostile):
    structure = Structure(hostile)
    assert structure.tags.count("table") == 5  # conflicts, history, ranges, casts, operations
    assert structure.tags.count("section") == 5
    text = " ".join(structure.text)
    for words in ("made_up", "at risk", "75 %", "9 casts", "MatMul", "low", "A note.", "float16"):
        assert words in text
    for look in ("width=device-width", "prefers-color-scheme: dark", 'lang="en"'):
        assert look in hostile


def test_the_page_needs_nothing_outside(hostile):
    structure = Structure(hostile)
    links = [value for _, name, value in structure.attributes if name in ("src", "href", "srcset")]
    assert all(value.startswith(("#", "data:,")) for value in links)
    for trace in ("http:", "https:", "@import", "url("):
        assert trace not in hostile


def test_hostile_names_are_text(hostile):
    structure = Structure(hostile)
    assert structure.tags.count("script") == 1
    assert not [name for _, name, _ in structure.attributes if name.startswith("on")]
    assert "alert" not in "".join(structure.scripts)
    cells = [text for text in structure.text if text in HOSTILE]
    assert set(cells) == set(HOSTILE)


def test_only_the_pages_own_script_may_run(hostile):
    structure = Structure(hostile)
    script = "".join(structure.scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for tag, name, value in structure.attributes if "default-src" in value)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_cell_of_a_row_has_its_columns_title(hostile):
    """On a phone the heads are not shown, and the cells carry their titles."""
    for table in re.findall(r"<table>.*?</table>", hostile, flags=re.S):
        titles = re.findall(r'<th scope="col"[^>]*><button type="button">([^<]*)</button>', table)
        for row in re.findall(r"<tr><td.*?</tr>", table, flags=re.S):
            assert re.findall(r'<td data-label="([^"]*)"', row) == titles


def test_an_empty_report_is_a_page():
    structure = Structure(render_page(ProfileReport("m", "jax", "float32", 1)))
    assert "table" not in structure.tags
    assert "No conflicts." in "".join(structure.text)


@pytest.mark.slow
def test_many_layers_are_drawn():
    names = [f"layer_{index}" for index in range(1000)]
    page = render_page(report(names, conflicts=()))
    assert page.count('class="mark"') == 1000 + 5
    assert len(page) < 20_000_000
    Structure(page)


@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_told_from_the_ground(name):
    """WCAG 2.1 asks for 3 for graphical objects; the dtype's name stands beside the colour."""
    light, dark = COLOURS[name]
    assert contrast(light, BACKGROUNDS["light"]) > 3
    assert contrast(dark, BACKGROUNDS["dark"]) > 3


def test_dtypes_have_their_colours():
    assert [colour_of(d) for d in ("float32", "float8_e5m2", "int32")] == [
        "float32", "float8", "other",
    ]  # fmt: skip


def test_a_histogram_has_a_bar_for_each_filled_bin():
    row = range_row("a", first_exponent=-3, histogram=(1, 0, 4))
    path = histogram_path(row)
    assert path.count("M") == 2
    heights = [abs(float(height)) for height in re.findall(r"v(-[\d.]+)", path)]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.05)
    assert histogram_path(range_row("a", histogram=(0, 0))) == ""
    far = range_row("a", first_exponent=LOWEST - 50, histogram=(1,) * (HIGHEST - LOWEST + 100))
    assert histogram_path(far).count("M") == HIGHEST - LOWEST


def test_the_chain_has_leaves_in_order_and_casts_on_edges():
    chain = chain_of(report())
    names = [box.name for box in chain.boxes]
    assert names == ["input", "stem", "block/fc", "block/norm", "head"]
    assert "block" not in names
    casts = [line for line in chain.lines if line.is_cast]
    assert [line.label for line in casts] == [
        "float32 → bfloat16", "bfloat16 → float32", "float32 → bfloat16",
    ]  # fmt: skip
    tops = [box.y for box in chain.boxes]
    assert all(later - earlier == ROW > BOX for earlier, later in itertools.pairwise(tops))
    assert chain.height > tops[-1] + BOX
    skip = next(line for line in chain.lines if line.title.startswith("stem to head"))
    assert "C" in skip.path


def test_operations_that_are_no_layers_are_drawn_behind_what_feeds_them():
    made = report()
    edges = (*made.edges, Edge("stem", "add", "bfloat16", "float32", 8))
    names = [box.name for box in chain_of(report(edges=edges)).boxes]
    assert names.index("add") == names.index("stem") + 1


def test_figures_that_are_not_known_are_dashes():
    page = render_page(
        report(census=census(), ranges=(range_row("a", smallest=None, largest=None),))
    )
    assert "–" in page  # noqa: RUF001
    assert "None" not in " ".join(Structure(page).text)


def test_no_rule_no_code():
    page = render_page(report(conflicts=(conflict(rules=()),)))
    assert "<code>" not in page
