"""What was trained, configured and recorded under one back end goes on under another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from deepseek_hpf.checkpoint import other_back_end
from deepseek_hpf.checkpoint.training_state import StateVariable
from deepseek_hpf.dynamic.event_file import read_events
from deepseek_hpf.errors import ConfigError

RUN = Path(__file__).with_name("run_to_be_continued.py")
BACKENDS = ["tensorflow", "jax", "torch"]


def run(what, folder, backend):
    done = subprocess.run(
        [sys.executable, str(RUN), what, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("other", [each for each in BACKENDS if each != keras.config.backend()])
def test_a_run_goes_on_under_another_back_end(other, tmp_path):
    (begun, _) = run("begin", tmp_path, keras.config.backend())
    (going, told) = run("continue", tmp_path, other)
    end = begun["end"]
    assert end["skipped"] == 1
    assert set(end["dtypes"].values()) == {"float16", "float32"}
    # The `.keras` file, without its seeds, which Keras leaves out of it.
    assert {**going["file"], "seeds": None} == {**end, "seeds": None}
    # The backup: weights, slots, seeds, loss scale, counters and plan.
    assert going["resumed"] == end
    assert "made under the back end" in told
    assert np.isfinite(going["end"]["weights"][0]).all()
    assert going["end"]["weights"] != end["weights"]
    # The events of both parts in one file.
    kinds = [type(line).__name__ for line in read_events(tmp_path / "events.jsonl").lines]
    assert "OverflowLine" in kinds
    assert "DecisionLine" in kinds


def variable(value, name="counter"):
    made = keras.Variable(np.asarray(value), dtype="int32", trainable=False, name=name)
    return StateVariable("optimizer", 0, made)


def test_a_count_beyond_the_range_is_refused_and_a_seed_is_cut():
    array = np.array([3, 2**31], "int64")
    with pytest.raises(ConfigError, match=r"2147483648"):
        other_back_end.converted(array, variable([0, 0]))
    seed = variable([0, 0], "seed_generator_state")
    assert other_back_end.converted(array, seed).tolist() == [3, -(2**31)]
    exact = other_back_end.converted(array - 1, variable([0, 0]))
    assert exact.dtype == np.int32
    assert exact.tolist() == [2, 2**31 - 1]


def test_only_integers_are_taken_for_one_another():
    found = [variable([0]), StateVariable("model", 1, keras.Variable(np.zeros(1), "float32"))]
    saved = [{**entry.describe(), "dtype": "int64"} for entry in found]
    here = other_back_end.as_here(saved, found)
    assert [entry["dtype"] for entry in here] == ["int32", "int64"]
