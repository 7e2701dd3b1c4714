"""The console's tables, the JSON and its schema, the difference, TensorBoard's events."""

import dataclasses
import json
import sys

import pytest
from made_up_report import HOSTILE, census, conflict, layer_row, range_row, report

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.profiler.console import report_text
from deepseek_hpf.profiler.diff import difference, difference_tables
from deepseek_hpf.profiler.findings import Census, NonFinite
from deepseek_hpf.profiler.report import ProfileReport
from deepseek_hpf.profiler.report_json import SCHEMA_FILE, from_json, schema_text, to_json
from deepseek_hpf.profiler.tensorboard_log import write_events
from deepseek_hpf.profiler.wording import headline, in_bytes, in_flops, in_seconds, risk

pytestmark = pytest.mark.pure


def test_the_console_shows_the_worst_first_and_says_what_it_leaves_out():
    made = report(ranges=tuple(range_row(f"layer_{n}", nans=n == 3) for n in range(30)))
    text = report_text(made, width=160)
    assert text.index("layer_3") < text.index("layer_1")
    assert "… and 10 more" in text
    assert '{"layers": "block/fc", "policy": "float32"}' in text
    assert "Compute it in float32." in text  # the advice, where there is no rule


def test_hostile_names_are_no_style():
    text = report_text(report(HOSTILE), width=400)
    assert "[bold]🦜 émoji[/bold]" in text
    assert HOSTILE[0] in text


def test_an_empty_report_has_no_tables():
    text = report_text(ProfileReport("m", "jax", "float32", 1))
    assert "No conflicts." in text
    assert "┃" not in text


def test_a_report_prints_as_tables():
    assert "Conflicts, worst first" in str(report())


@pytest.mark.parametrize(
    ("errors", "waste", "words"),
    [
        (0, 0, "No conflicts."),
        (1, 0, "1 conflict that puts numbers at risk, 0 that waste time."),
        (2, 1, "2 conflicts that put numbers at risk, 1 that wastes time."),
    ],
)
def test_the_headline_counts(errors, waste, words):
    conflicts = (*(conflict() for _ in range(errors)),)
    conflicts += tuple(conflict(severity="waste") for _ in range(waste))
    assert headline(report(conflicts=conflicts))[0] == words


def test_units_turn_over():
    assert [in_bytes(n) for n in (1023, 1024, 2**30, 2**41)] == [
        "1,023 B", "1.0 KiB", "1.0 GiB", "2,048.0 GiB",
    ]  # fmt: skip
    assert [in_flops(n) for n in (1e3, 999.9e6, 1e12)] == ["1 k", "1e+03 M", "1 T"]
    assert [in_seconds(s) for s in (0, 1, 0.001)] == ["0.00 s", "1.00 s", "1.00 ms"]


def test_what_is_not_finite_is_the_riskiest():
    rows = [range_row("a"), range_row("b", infinities=1)]
    assert max(rows, key=risk).path == "b"


def test_the_json_comes_back_unchanged(tmp_path):
    made = report(HOSTILE)
    made.to_json(tmp_path / "r.json")
    assert ProfileReport.from_json(tmp_path / "r.json") == made
    empty = ProfileReport("m", "jax", "float32", 1)
    assert from_json(to_json(empty)) == empty


def test_the_schema_that_is_shipped_is_the_reports():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()
    schema = json.loads(schema_text())
    assert {"version", "model", "backend"} <= set(schema["required"])
    written = json.loads(to_json(report()))
    assert set(written) == set(schema["properties"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a profile as JSON"),
        ("{", "expected a profile as JSON"),
        ("[" * 100_000, "expected a profile as JSON"),
        ("[]", "expected a profile of version 1"),
        ("{}", "expected a profile of version 1"),
        ('{"version": 2}', "expected a profile of version 1"),
        ('{"version": 1}', "no profile: model: Field required"),
        ('{"version": 1, "model": 3, "backend": "", "policy": "", "steps": 1}', "model: Input"),
    ],
)
def test_what_is_no_profile_is_one_line(text, words):
    with pytest.raises(ConfigError) as caught:
        from_json(text, "a.json")
    assert str(caught.value).startswith("a.json: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_reports_do_not_differ():
    found = difference(report(), dataclasses.replace(report(), seconds=9.0))
    assert found.is_empty
    assert "No difference." in str(difference_tables(found))


def test_the_difference_names_what_changed():
    before = report()
    after = dataclasses.replace(
        before,
        policy="float32",
        conflicts=(*before.conflicts[1:], conflict("new/layer")),
        layers=(layer_row("stem", "float16"), *before.layers[2:]),
        census=dataclasses.replace(census(), casts=census().casts[:1]),
        nonfinite=None,
    )
    found = difference(before, after)
    assert [each.path for each in found.gone] == ["block/fc"]
    assert [each.path for each in found.new] == ["new/layer"]
    changes = {change.what: (change.before, change.after) for change in found.changes}
    assert changes["policy"] == ("mixed_bfloat16", "float32")
    assert changes["layer stem computes in"] == ("bfloat16", "float16")
    assert changes["layer block computes in"] == ("bfloat16", "–")  # noqa: RUF001
    assert changes["first non-finite value"][0] == "head"
    assert changes["casts of a step"][0].startswith("9, 6.0 KiB")
    assert not any(what.startswith("arithmetic") for what in changes)


def events(folder):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    return [
        value
        for path in folder.iterdir()
        for event in loader.EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def test_tensorboard_reads_what_was_written(tmp_path):
    write_events(report(HOSTILE), tmp_path / "logs", step=7)
    values = {value.tag: value for value in events(tmp_path / "logs")}
    scalar = values["precision/casts"]
    read = scalar.tensor.float_val[0] if scalar.HasField("tensor") else scalar.simple_value
    assert read == 9
    assert f"ranges/{HOSTILE[3]}/output/largest" in values
    assert any(tag.endswith("stem/output/log2_magnitude") for tag in values)


def test_empty_histograms_are_left_out(tmp_path):
    made = report(ranges=(range_row("a", histogram=(0, 0), smallest=None, largest=None),))
    write_events(dataclasses.replace(made, census=Census(), nonfinite=None), tmp_path)
    tags = {value.tag for value in events(tmp_path)}
    assert "ranges/a/output/log2_magnitude" not in tags
    assert "precision/casts" not in tags
    assert "precision/non_finite" in tags


@pytest.mark.parametrize(
    ("package", "extra", "act"),
    [
        ("tensorboard", "tensorboard", lambda path: write_events(report(), path)),
        ("jinja2", "report", lambda path: report().to_html(path / "r.html")),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, tmp_path, package, extra, act):
    from deepseek_hpf.profiler import page

    page._environment.cache_clear()
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'deepseek_hpf\[{extra}\]'"):
        act(tmp_path)


def test_a_non_finite_value_is_in_the_headline():
    found = NonFinite("backward", "block/fc", "Log", "nan", 4, ())
    text = " ".join(headline(report(nonfinite=found)))
    assert "nan in step 4, made by Log at block/fc (backward)." in text
    unnamed = dataclasses.replace(found, operation="Dense", reason="the batch itself is not finite")
    text = " ".join(headline(report(nonfinite=unnamed)))
    assert "made by Dense at block/fc (backward): the batch itself is not finite." in text
