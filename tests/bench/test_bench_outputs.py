"""The page, the figures, the chart and the lines of JSON say what was measured."""

import json
import random

import pytest
from made_up_results import failed, machine, result

from deepseek_hpf.bench.front import Outputs, show, to_json, write_files
from deepseek_hpf.bench.markdown import render_markdown
from deepseek_hpf.bench.records import FLOAT16, FLOAT32, OURS, ContenderResult
from deepseek_hpf.bench.results_file import read_results, write_results
from deepseek_hpf.bench.table import model_rows, notes, suite_columns, suite_rows
from deepseek_hpf.errors import ConfigError

pytestmark = pytest.mark.pure


def test_the_table_of_a_model():
    rows = model_rows(result())
    assert rows[0] == (
        FLOAT32,
        "1.5 (1.25 to 1.75)",
        "1.00 (1.00 to 1.00)",
        "0.80 (0.80 to 0.80)",
        "64 MiB",
    )
    assert rows[2][1:] == ("4 (4 to 4)", "0.25 (0.25 to 0.25)", "–", "not told")  # noqa: RUF001
    broken = ContenderResult(name=FLOAT16, failure="ValueError: no")
    rows = model_rows(result(contenders=(*result().contenders[:2], broken)))
    assert rows[2] == (FLOAT16, "failed", "–", "–", "–")  # noqa: RUF001


def test_the_table_of_a_suite_has_a_row_for_each_model():
    models = [result("A", ours=0.5), failed("B")]
    columns, rows = suite_columns(models), suite_rows(models, quartiles=True)
    assert {len(row) for row in rows} == {len(columns)}
    assert rows[0][0] == "A"
    assert rows[0][-2:] == ["2.00 (2.00 to 2.00)", "1.60 (Keras mixed_bfloat16)"]
    assert rows[1][:2] == ["B", "failed"]
    assert suite_rows(models, quartiles=False)[0][-2:] == ["2.00", "1.60 (Keras mixed_bfloat16)"]
    assert notes(failed("B")) == ["failed: out of memory"]
    assert f"{OURS}: a plan, tuned in 7 s" in notes(result())


def test_the_page_names_command_hardware_versions_and_date():
    models = [result("A"), failed("B", "killed | for\nmemory"), result("C", machine=machine("jax"))]
    page = render_markdown(models, "hpf bench --suite --markdown BENCHMARKS.md")
    assert "Written by `hpf bench --suite --markdown BENCHMARKS.md`." in page
    for word in (
        "## Keras on TensorFlow, Made-up CPU, 2 cores",
        "## Keras on JAX, Made-up CPU, 2 cores",
        "native (it has avx512_bf16)",
        "keras 3.0",
        "Date: 2026-11-24.",
        "`KERAS_BACKEND=jax hpf bench --suite`",
        "64 MiB",
    ):
        assert word in page
    widths = {}
    for line in page.splitlines():
        if line.startswith("|"):
            widths.setdefault(line.count("|") - line.count("\\|"), []).append(line)
    assert all(len(lines) >= 3 for lines in widths.values())  # head, rule and rows agree


def test_a_note_that_holds_for_several_models_is_said_once():
    models = [result("A"), result("B"), failed("C")]
    page = render_markdown(models, "hpf bench")
    assert "- A; B: Keras mixed_float16: slow" in page
    assert "- C: failed: out of memory" in page
    assert "- All models: Keras mixed_float16: slow" in render_markdown(models[:2], "hpf bench")


def test_the_page_of_nothing():
    assert render_markdown([], "hpf bench").startswith("# Benchmarks")


def test_the_figures_hold_what_was_measured_and_what_follows():
    figures = json.loads(to_json([result("A", ours=0.5), failed("B")]))
    first, second = figures["models"]
    assert first["turns"][0][FLOAT32] == [1.0, 2.0]
    assert first["figures"]["contenders"][OURS]["over_float32"]["median"] == 2.0
    assert first["figures"]["best_peer"] == "Keras mixed_bfloat16"
    assert second["failure"] == "out of memory"
    (summary,) = figures["summaries"]
    assert summary["models"] == 1
    assert summary["worst"]["model"] == "A"


def test_results_come_back_from_their_file(tmp_path):
    values = tuple(random.random() for _ in range(50))
    models = [result(turns=({FLOAT32: values},)), failed(reason='quotes " and\nlines')]
    path = tmp_path / "results.jsonl"
    write_results(path, models)
    assert len(path.read_text().splitlines()) == 2
    assert read_results(path) == models
    assert [each.key for each in read_results(path)] == [each.key for each in models]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json\n", r"line 1: expected JSON"),
        ("\n[1]\n", r"line 2: expected a result of format 1.*Received: format=None"),
        ('{"format": 99}\n', r"Received: format=99"),
        ('{"format": 1}\n', r"no result of a benchmark: model: "),
        ("[" * 100_000, r"line 1: expected JSON"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(text, message, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        read_results(path)
    assert "results.jsonl" in str(raised.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="expected text"):
        read_results(path)


def test_the_chart_has_a_panel_for_each_machine():
    from deepseek_hpf.bench.plot import bar_chart

    one = bar_chart([result("A"), failed("B")])
    two = bar_chart([result("A"), result("A", machine=machine("jax"))])
    assert one.startswith(b"\x89PNG")
    height = [int.from_bytes(png[20:24]) for png in (one, two)]
    assert height[1] == 2 * height[0]


def test_files_are_written_whole_and_named(tmp_path, capsys):
    from rich.console import Console

    outputs = Outputs(json=tmp_path / "a.json", markdown=tmp_path / "B.md", plot=tmp_path / "c.png")
    outputs.check()
    show([result("A"), result("B")], outputs, Console(width=200), "hpf bench")
    shown = capsys.readouterr().out
    assert "Geometric mean over 2 models" in shown
    assert shown.count("Written: ") == 3
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "B.md", "c.png"}
    assert write_files([result()], Outputs(), "hpf bench") == []


def test_a_folder_that_is_not_there_is_refused_before_the_work(tmp_path):
    for name in ("json", "markdown", "plot", "results"):
        with pytest.raises(ConfigError, match="a folder that is there"):
            Outputs(**{name: tmp_path / "nowhere" / "file"}).check()
        with pytest.raises(ConfigError, match="a folder that is there"):
            Outputs(**{name: tmp_path}).check()
