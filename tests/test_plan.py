"""`PrecisionPlan` as a value."""

import copy
import pickle
import subprocess
import sys

import pytest

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.plan import LayerPlan, PrecisionPlan

pytestmark = pytest.mark.pure

LOW = LayerPlan(policy="mixed_bfloat16", kernel=True, backward="float32", activations="int8")
HIGH = LayerPlan(policy="float32")


def test_equal_whatever_the_order_and_the_way_there(tmp_path):
    plan = PrecisionPlan({"größe/a": LOW, "b": HIGH, "c": LayerPlan()})
    plan.to_json(tmp_path / "plan.json")
    twins = [
        PrecisionPlan({"c": LayerPlan(policy=None), "b": HIGH, "größe/a": LOW}),
        PrecisionPlan.from_dict(plan.to_dict()),
        PrecisionPlan.from_json(tmp_path / "plan.json"),
        PrecisionPlan({"b": HIGH}).replace({"größe/a": LOW, "c": LayerPlan()}),
        pickle.loads(pickle.dumps(plan)),
        copy.copy(plan),
        copy.deepcopy(plan),
    ]
    for twin in twins:
        assert twin == plan
        assert hash(twin) == hash(plan)
        assert twin.digest() == plan.digest()
    assert list(twins[0].to_dict()) == sorted(plan)  # files of equal plans are the same
    assert plan["größe/a"] == LOW
    assert len(plan) == 3
    assert plan != {"b": HIGH}


@pytest.mark.parametrize(
    "other",
    [
        PrecisionPlan(),
        PrecisionPlan({"a": HIGH, "b": HIGH}),
        PrecisionPlan({"A": HIGH}),
        PrecisionPlan({"a": HIGH.replace(kernel=False)}),
        PrecisionPlan({"a": LayerPlan(policy="float16")}),
    ],
)
def test_a_difference_shows(other):
    plan = PrecisionPlan({"a": HIGH})
    assert plan != other
    assert plan.digest() != other.digest()
    assert plan.changes_from(other) == other.changes_from(plan) != ()


def test_changes_name_the_paths():
    before = PrecisionPlan({"a": HIGH, "b": HIGH, "c": HIGH})
    after = before.replace({"b": LOW, "d": LOW})
    assert after.changes_from(before) == ("b", "d")
    assert after.changes_from(after) == ()
    assert before["b"] == HIGH


def test_digest_is_the_same_in_another_process():
    code = (
        "from deepseek_hpf.plan import *;"
        "a, b = LayerPlan(kernel=False), LayerPlan(policy='float32');"
        "print(PrecisionPlan({'b': b, 'a': a}).digest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert done == PrecisionPlan({"a": LayerPlan(kernel=False), "b": HIGH}).digest()
    assert len(done) == 64


def test_immutable():
    layers = {"a": HIGH}
    plan = PrecisionPlan(layers)
    layers["b"] = LOW
    assert list(plan) == ["a"]
    with pytest.raises(TypeError):
        plan["a"] = LOW  # type: ignore[index]
    with pytest.raises(ConfigError, match="immutable"):
        plan._layers = {}
    with pytest.raises(ConfigError, match="immutable"):
        del plan._layers
    with pytest.raises(ConfigError, match="frozen"):
        plan["a"].policy = "float16"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"a": {"polcy": "float32"}}, '"a": polcy: unknown key'),
        ({"a": {"kernel": 1}}, '"a": kernel: expected true, false or null'),
        ({"a": {"policy": ""}}, "at least 1 character"),
        ({"a": {"policy": "auto"}}, '"a": policy: expected the policy that'),
        ({"a": 3}, '"a": expected a dict. Received: 3'),
        ({1: {}}, "expected layer paths"),
        ([], "expected a dict from layer path"),
    ],
)
def test_bad_plans_are_config_errors(layers, words):
    with pytest.raises(ConfigError) as caught:
        PrecisionPlan.from_dict(layers)
    assert words in str(caught.value)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"a": {"kernel": 1}}')
    with pytest.raises(ConfigError, match=r"plan\.json: \"a\": kernel"):
        PrecisionPlan.from_json(path)
    with pytest.raises(ConfigError, match="LayerPlan"):
        PrecisionPlan({"a": {}})  # type: ignore[dict-item]
    for no_mapping in ([1], "ab", 3):
        with pytest.raises(ConfigError, match="expected a dict from layer path"):
            PrecisionPlan(no_mapping)  # type: ignore[arg-type]
