"""Two replicas: one overflow skips on both, and what is applied is what one device applies."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend("tensorflow")
SLOW = pytest.mark.slow
SLOW_CASES = ("averaged", "accumulated", "masters", "split", "stochastic")
CASES = ["plain", *(pytest.param(c, marks=SLOW) for c in SLOW_CASES)]
# bfloat16 weights below 1 lie 2^-8 apart at most; the sums of two replicas round otherwise.
DIFFERENCES = {"masters": 2e-3, "split": 8e-3, "stochastic": 2e-2}


@functools.cache
def report(case):
    script = Path(__file__).with_name("replicas_tensorflow.py")
    command = [sys.executable, str(script), case]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(row for row in done.stdout.splitlines() if row.startswith("REPORT"))
    return json.loads(line.removeprefix("REPORT"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_replicas_are_one_device(case):
    found = report(case)
    assert found["finite"]
    assert found["difference"] < DIFFERENCES.get(case, 1e-6)
    assert found["together"]["counters"] == pytest.approx(found["alone"]["counters"], rel=2e-3)
    assert found["together"]["counters"][0] == 1
    assert found["together"]["iterations"] == found["alone"]["iterations"] == 2
    assert found["together"]["same"]
    assert found["together"]["left_behind"] == []
    windows = [found[which]["window"] for which in ("alone", "together")]
    if case in ("averaged", "stochastic"):
        assert windows == [None, None]
        return
    assert windows[0][:2] == windows[1][:2] == [3, 1]
    for alone, together in zip(windows[0][2:], windows[1][2:], strict=True):
        assert alone[1] > 0
        assert together == pytest.approx(alone, rel=2e-2 if case in DIFFERENCES else 1e-5)


@pytest.mark.slow
def test_an_eager_loop_skips_on_both():
    # Then the sum of both replicas' gradients, 2, by the scale after one back-off, 2.
    assert report("plain")["eager"] == [1.0, 0.0, 1]
