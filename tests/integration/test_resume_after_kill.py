"""A process killed with SIGKILL, while it saves included; another one ends with the same bits."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepseek_hpf.checkpoint import training_state

SCRIPT = Path(__file__).with_name("resume_script.py")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import resume_script

        yield resume_script
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def reference(script):
    return script.train()


@pytest.fixture(scope="module")
def dynamic_reference(script):
    return script.train(dynamic=True)


def run_and_kill(directory, moment, count, *options):
    """Runs the script until it waits at the moment, then kills it."""
    command = [sys.executable, str(SCRIPT), str(directory), moment, str(count), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        line = process.stdout.readline()
        if "waiting" not in line:
            pytest.fail(f"The script did not come to wait:\n{process.communicate()[1]}")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def bits(model):
    listed = training_state.training_variables(model, metrics=False)
    values = [training_state.read_value(entry.variable) for entry in listed]
    return [(v.shape, v.dtype.name, v.tobytes()) for v in values]


def without_numbers(events):
    """Events without what depends on the numbers that Keras appends to names."""
    told = [[{k: v for k, v in e.items() if k != "plan"} for e in each] for each in events]
    return re.sub(r"(dense|dropout|normalization)_\d+", r"\1", json.dumps(told))


def assert_same_end(resumed, reference):
    assert bits(resumed) == bits(reference)
    assert resumed.history.epoch == reference.history.epoch
    assert resumed.history.history.keys() == reference.history.history.keys()
    for name, values in reference.history.history.items():
        if name == "precision_events":
            assert without_numbers(resumed.history.history[name]) == without_numbers(values)
            continue
        np.testing.assert_array_equal(resumed.history.history[name], values, err_msg=name)


def test_the_reference_run_skips_grows_and_learns(reference):
    logs = reference.history.history
    # Skips at first, and again later because the scale has grown in between.
    assert 0 < logs["skipped_steps"][0] < logs["skipped_steps"][-1]
    assert 1.0 < logs["dynamic_scale"][-1] < 2.0**19
    assert logs["loss"][-1] < logs["loss"][0]


@pytest.mark.slow
def test_killed_during_a_save(script, reference, tmp_path):
    run_and_kill(tmp_path, "rename", 8)
    assert list(tmp_path.glob(".*-backup-*")), "nothing half-done was left behind"
    assert list(tmp_path.glob("backup-*"))
    epochs = []
    watch = script.keras.callbacks.LambdaCallback(on_epoch_begin=lambda e, _: epochs.append(e))
    resumed = script.train(tmp_path, [watch], overrides_first=False)
    assert epochs[0] > 0, "it started from scratch"
    assert_same_end(resumed, reference)


MOST = {"step": 19, "array": 150, "fsync": 30, "rename": 14, "renamed": 14, "remove": 7}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOST)
def test_killed_at_any_moment(script, reference, tmp_path, moment):
    count = random.randint(1, MOST[moment])
    print(f"killed at {moment} {count}")
    run_and_kill(tmp_path, moment, count)
    assert_same_end(script.train(tmp_path), reference)


@pytest.mark.slow
def test_the_dynamic_reference_promotes_and_demotes_and_keeps_the_scale(dynamic_reference):
    logs = dynamic_reference.history.history
    kinds = {line["kind"] for lines in logs["precision_events"] for line in lines}
    assert {"overflow", "promote", "demote", "scale"} <= kinds
    assert logs["precision_switches"][-1] > 2


@pytest.mark.slow
@pytest.mark.parametrize("overrides_first", [True, False])
@pytest.mark.parametrize("moment", MOST)
def test_a_dynamic_run_killed_at_any_moment(
    script, dynamic_reference, tmp_path, moment, overrides_first
):
    if not overrides_first and os.environ["KERAS_BACKEND"] != "tensorflow" and moment != "step":
        pytest.skip("half a minute each: the other order at one moment on the other back ends")
    count = random.randint(1, MOST[moment])
    order = "first" if overrides_first else "last"
    print(f"killed at {moment} {count}, the controller {order}")
    run_and_kill(tmp_path, moment, count, "dynamic", *([] if overrides_first else ["reversed"]))
    resumed = script.train(tmp_path, overrides_first=overrides_first, dynamic=True)
    assert_same_end(resumed, dynamic_reference)


@pytest.mark.slow
def test_killed_twice(script, reference, tmp_path):
    run_and_kill(tmp_path, "step", random.randint(4, 9))
    run_and_kill(tmp_path, "array", random.randint(1, 40))
    assert_same_end(script.train(tmp_path), reference)
