"""Measured figures as values: ratios, and the way through JSON."""

import json
import pickle

import pytest

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.hardware.throughput import Figure, ProbeResult, Throughput

pytestmark = pytest.mark.pure

NONE = Figure(None, "made up")
RESULT = ProbeResult(
    "A CPU",
    "jax",
    (
        Throughput("float32", Figure(4e9), Figure(2e9), NONE, Figure(1e9)),
        Throughput("float16", Figure(1e9), NONE, Figure(5e8, "slow"), Figure(1e9)),
    ),
)
FIRST = RESULT.to_dict()["throughputs"][0]


def test_ratios():
    assert RESULT.ratio("float16", "matmul") == 0.25
    assert RESULT.ratio("float32", "matmul", over="float16") == 4.0
    assert RESULT.ratio("float16", "convolution") is None
    assert RESULT.ratio("float16", "cast") is None
    with pytest.raises(ConfigError, match=r"one of float32, float16\. Received: dtype='bfloat16'"):
        RESULT.ratio("bfloat16", "matmul")
    with pytest.raises(ConfigError, match="float64"):
        RESULT.ratio("float32", "matmul", over="float64")


def test_a_result_is_a_value():
    assert ProbeResult.from_dict(json.loads(json.dumps(RESULT.to_dict()))) == RESULT
    assert pickle.loads(pickle.dumps(RESULT)) == RESULT
    assert len({RESULT, ProbeResult.from_dict(RESULT.to_dict())}) == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"throughputs": None},
        {"throughputs": [3]},
        {"throughputs": [{"dtype": "float32"}]},
        {"throughputs": [{"dtype": "float32", "matmul": {}}]},
        {"throughputs": [{**FIRST, "copy": {"rate": "x", "note": ""}}]},
    ],
)
def test_what_is_no_result_is_refused(damage):
    with pytest.raises(ConfigError, match="to_dict"):
        ProbeResult.from_dict({**RESULT.to_dict(), **damage})
    with pytest.raises(ConfigError, match="to_dict"):
        ProbeResult.from_dict({})
