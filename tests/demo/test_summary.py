"""The table, the sentences and the JSON say what was measured, and a dash where nothing was."""

import json
import math

import pytest
from made_up import comparison, result, start

from deepseek_hpf.demo.records import EpochDone, RunSettings
from deepseek_hpf.demo.summary import run_names, sentences, settings_in_words, table_rows, to_json

pytestmark = pytest.mark.pure


def test_the_table():
    assert [tuple(row) for row in table_rows(comparison())] == [
        ("Seconds per step", "0.2000 s", "0.1000 s"),
        ("Steps a second, as a ratio", "1.00", "2.00"),
        ("Test accuracy", "96.00%", "96.00%"),
        ("Loss after the last epoch", "0.3333", "0.3333"),
        ("Peak memory of the process", "512 MiB", "512 MiB"),
        ("Dynamic loss scale", "off", "65,536"),
        ("Skipped steps", "not counted", "2"),
    ]


def test_seconds_per_step_leave_out_what_compiles():
    run = result("float32", 1.0)
    assert run.seconds_per_step == 1.5 or run.seconds_per_step == 1.0
    steps = [seconds for epoch in run.epochs for seconds in epoch.step_seconds]
    assert sorted(steps[2:])[len(steps[2:]) // 2] == run.seconds_per_step


def test_what_is_not_known_is_a_dash():
    epoch = EpochDone(
        epoch=0,
        loss=math.nan,
        test_loss=math.inf,
        test_accuracy=math.nan,
        step_seconds=(1.0, 0.1),  # both compile
    )
    empty = result("mixed_float16", 1.0, epochs=(epoch,), peak_memory=None, skipped_steps=0)
    rows = table_rows(comparison(policy=empty))
    assert [row.policy for row in rows[:5]] == ["–"] * 5  # noqa: RUF001
    assert rows[-1].policy == "0"
    figures = json.loads(to_json(comparison(policy=empty)))
    assert figures["policy"]["epochs"][0]["test_loss"] is None
    assert figures["policy"]["epochs"][0]["step_seconds"] == [1.0, 0.1]


def test_two_runs_in_float32_are_told_apart_and_explained():
    same = comparison(policy=result("float32", 0.2, skipped_steps=0))
    assert run_names(same) == ("float32", "float32, guarded")
    assert "both runs compute in float32" in sentences(same)[1]
    assert "both runs compute" not in " ".join(sentences(comparison()))


def test_runs_that_began_differently_are_not_called_the_same():
    other = result("mixed_float16", 0.1, start=start(initial_weights="xyz"))
    assert "the same weights, bit for bit" in sentences(comparison())[-1]
    assert "did not begin with the same weights" in sentences(comparison(policy=other))[-1]


def test_the_settings_in_words():
    words = settings_in_words(comparison(settings=RunSettings(policy="auto", epochs=3, seed=5)))
    assert words == (
        "ResNet-20 (1,234,567 parameters) on digits, 16 by 16 pixels in grey, 3 epochs of 3 steps, "
        "batch size 32, seed 5; keras 3.0."
    )
