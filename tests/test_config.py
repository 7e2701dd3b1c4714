"""The configuration: what is valid, what is refused and how, and the way through JSON."""

import copy
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepseek_hpf.config import (
    AdaptiveConfig,
    AnomalyConfig,
    DynamicConfig,
    GlobalNormConfig,
    LossScaleConfig,
    PrecisionConfig,
    PrecisionRule,
    ValueConfig,
)
from deepseek_hpf.config_schema import SCHEMA_FILE, schema_text
from deepseek_hpf.errors import ConfigError

pytestmark = pytest.mark.pure

FROZEN = Path(__file__).parent / "data_files" / "precision-v1.json"
EXAMPLE = Path(__file__).parents[1] / "examples" / "precision.json"


def refusal(values) -> str:
    """The one error that a configuration gives: at most three short lines."""
    with pytest.raises(ConfigError) as caught:
        PrecisionConfig.from_dict(values)
    return checked(caught.value)


def checked(error: ConfigError) -> str:
    text = str(error)
    assert 1 <= len(text.split("\n")) <= 3
    assert all(0 < len(line) < 500 for line in text.split("\n"))
    assert text.replace("\n", "").isprintable()
    assert "pydantic" not in text
    return text


# --- What is valid ---------------------------------------------------------------------------


def test_the_file_of_version_1_loads_for_ever():
    config = PrecisionConfig.from_json(FROZEN)
    assert config == PrecisionConfig(
        policy="auto",
        rules=(
            PrecisionRule(layers="stem*", policy="float32"),
            PrecisionRule(layer_type="BatchNormalization", policy="float32"),
            PrecisionRule(
                layers="decoder",
                layer_type="Dense",
                policy="mixed_bfloat16",
                backward="float32",
                activations="int8",
                kernel=False,
            ),
        ),
        clipping=GlobalNormConfig(max_norm=1.0),
        dynamic=DynamicConfig(controller="threshold"),
    )
    assert config.loss_scale.max_scale == 2**24
    assert config.model_fields_set == set(PrecisionConfig.model_fields) - {"activations"}  # later
    assert PrecisionConfig.from_json(EXAMPLE) == config


def test_defaults():
    config = PrecisionConfig()
    assert config.model_fields_set == set()
    assert config.to_dict() == {}
    assert (config.policy, config.rules, config.kernels) == ("auto", (), True)
    assert (config.jit_compile, config.clipping, config.dynamic) == (None, None, None)
    assert config.master_weights is False
    scale = config.loss_scale
    assert (scale.initial_scale, scale.growth_steps, scale.growth_factor) == (2**15, 2000, 2)
    assert (scale.backoff_factor, scale.min_scale, scale.max_scale) == (0.5, 1, 2**24)
    assert scale.hysteresis == 1


@pytest.mark.parametrize(
    "values",
    [
        {"loss_scale": {"initial_scale": None}},
        {"loss_scale": {"initial_scale": 2**-126, "min_scale": 2**-126}},
        {
            "loss_scale": {
                "initial_scale": 3.4028234663852886e38,
                "max_scale": 3.4028234663852886e38,
            }
        },
        {"loss_scale": {"initial_scale": 8, "min_scale": 8, "max_scale": 8}},
        {"loss_scale": {"growth_steps": 2**31 - 1, "hysteresis": 2**31 - 1}},
        {"loss_scale": {}},
        {"dynamic": {}},
        {"rules": []},
        {"clipping": {"kind": "anomaly"}},
        {"$schema": "anything"},
        {"rules": [{"layers": "größe/[", "activations": None}]},
    ],
)
def test_edges_that_are_valid(values):
    config = PrecisionConfig.from_dict(values)
    assert PrecisionConfig.from_dict(config.to_dict()) == config


def test_nested_sections_may_be_objects_or_dicts():
    rule = PrecisionRule(layers="a", policy="float32")
    assert PrecisionConfig(rules=[rule]) == PrecisionConfig(rules=({**rule.to_dict()},))
    for clipping in (
        GlobalNormConfig(max_norm=1),
        ValueConfig(limit=1),
        AdaptiveConfig(ratio=0.01),
        AnomalyConfig(z=3),
    ):
        config = PrecisionConfig(clipping=clipping)
        assert config.clipping is not None
        assert config.to_dict()["clipping"]["kind"] == clipping.kind
        assert PrecisionConfig.from_dict(config.to_dict()) == config


# --- What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"polcy": "auto"}, ["polcy: unknown key", 'Did you mean "policy"?']),
        (
            {
                "rules": [{"layers": "a", "kernel": True}] * 2
                + [{"layers": "a", "policy": "float23"}]
            },
            [
                "rules[2].policy: ",
                'policy="float23"',
                'Did you mean "float32"?',
                '"mixed_bfloat16"',
            ],
        ),
        ({"policy": "Mixed_BFloat16"}, ['Did you mean "mixed_bfloat16"?']),
        ({"policy": None}, ["policy: expected one of", "policy=null"]),
        ({"policy": "\ud800\n"}, ["policy: expected Unicode text", r"\ud800\n"]),
        (
            {"rules": [{"layers": "a", "backward": "mixed_float16"}]},
            ["rules[0].backward", 'expected "float32"'],
        ),
        ({"rules": [{"layers": "a", "activations": "int2"}]}, ["rules[0].activations", '"int8"']),
        ({"rules": [{"policy": "float32"}]}, ["rules[0]: ", '"layers" or "layer_type"']),
        ({"rules": [{"layers": None, "policy": "auto"}]}, ["rules[0]: ", '"layers" or']),
        ({"rules": [{"layers": "a"}]}, ["rules[0]: ", '"policy", "backward"']),
        (
            {"rules": [{"layers": "", "policy": "auto"}]},
            ["rules[0].layers", "at least 1 character"],
        ),
        ({"rules": [{"layers": "a" * 1001, "policy": "auto"}]}, ["at most 1,000 characters", "…"]),
        (
            {"rules": [{"layer_type": "keras.Dense", "policy": "auto"}]},
            ["rules[0].layer_type", "Dense"],
        ),
        (
            {"rules": [{"layers": "a", "kernel": 1}]},
            ["rules[0].kernel: expected true, false or null"],
        ),
        (
            {"rules": {"layers": "a"}},
            ["rules: expected a list of rules. Received: rules=an object"],
        ),
        ({"rules": ["a"]}, ["rules[0]: expected an object", '"a"']),
        ({"rules": "a"}, ["rules: expected a list"]),
        ({"rules": [{"layers": "a", "kernel": True}] * 10_001}, ["at most 10,000 entries"]),
        ({"kernels": "true"}, ['kernels: expected true or false. Received: kernels="true"']),
        ({"jit_compile": 0}, ["jit_compile: expected true, false or null", "jit_compile=0"]),
        ({"master_weights": None}, ["master_weights: expected true or false"]),
        ({"master_weights": 1}, ["master_weights: expected true or false", "master_weights=1"]),
        (
            {"master_weights": "Split"},
            ['"split" or "stochastic". Received: master_weights="Split"'],
        ),
        ({"loss_scale": None}, ["loss_scale: expected an object", '{"initial_scale": null}']),
        (
            {"loss_scale": {"initial_scale": True}},
            ["loss_scale.initial_scale: expected a number or null"],
        ),
        ({"loss_scale": {"initial_scale": "1"}}, ["loss_scale.initial_scale: expected a number"]),
        ({"loss_scale": {"initial_scale": 0}}, ["greater than 0"]),
        ({"loss_scale": {"initial_scale": 1e-39}}, ["float32 can hold"]),
        (
            {"loss_scale": {"initial_scale": 2**25}},
            ["loss_scale.initial_scale", "[1.0, 16777216.0]"],
        ),
        (
            {"loss_scale": {"max_scale": 1024}},
            ["loss_scale.initial_scale", "[1.0, 1024.0]", "as well"],
        ),
        (
            {"loss_scale": {"min_scale": 9, "max_scale": 8}},
            ["loss_scale.min_scale", "at most max_scale"],
        ),
        ({"loss_scale": {"max_scale": 1e39}}, ["loss_scale.max_scale", "at most 3.4"]),
        ({"loss_scale": {"max_scale": 10**400}}, ["loss_scale.max_scale", "more than 30 digits"]),
        ({"loss_scale": {"growth_factor": 1}}, ["loss_scale.growth_factor", "greater than 1"]),
        ({"loss_scale": {"growth_factor": 1 + 1e-9}}, ["loss_scale.growth_factor", "in float32"]),
        ({"loss_scale": {"backoff_factor": 1}}, ["loss_scale.backoff_factor", "less than 1"]),
        (
            {"loss_scale": {"backoff_factor": 1 - 1e-9}},
            ["loss_scale.backoff_factor", "between 0 and 1"],
        ),
        ({"loss_scale": {"backoff_factor": -0.5}}, ["loss_scale.backoff_factor", "greater than 0"]),
        ({"loss_scale": {"growth_steps": 0}}, ["loss_scale.growth_steps", "at least 1"]),
        ({"loss_scale": {"growth_steps": 2000.0}}, ["an integer", "growth_steps=2000.0"]),
        ({"loss_scale": {"hysteresis": 2**31}}, ["loss_scale.hysteresis", "at most"]),
        ({"loss_scale": {"growth_step": 5}}, ['Did you mean "growth_steps"?']),
        ({"clipping": {"kind": "norm"}}, ["clipping.kind: expected one of", '"global_norm"']),
        ({"clipping": {"kind": ["value"]}}, ["clipping.kind: expected one of"]),
        ({"clipping": {"max_norm": 1}}, ["clipping.kind: this key is needed"]),
        ({"clipping": {"kind": "global_norm"}}, ["clipping.max_norm: this key is needed"]),
        ({"clipping": {"kind": "value", "limit": -1}}, ["clipping.limit: ", "limit=-1"]),
        ({"clipping": {"kind": "value", "limt": 1, "limit": 1}}, ['Did you mean "limit"?']),
        ({"clipping": 1.0}, ["clipping: expected an object or null"]),
        (
            {"dynamic": {"controller": "treshold"}},
            ["dynamic.controller", 'Did you mean "threshold"?'],
        ),
        ({"dynamic": {"evry": 5}}, ["dynamic.evry: unknown key", 'Did you mean "every"?']),
        ({"dynamic": {"every": 0}}, ["dynamic.every: ", "at least 1"]),
        ({"dynamic": {"max_plans": 1}}, ["dynamic.max_plans: ", "at least 2", "max_plans=1"]),
        ({"dynamic": {"underflow": 1.5}}, ["dynamic.underflow: ", "at most 1"]),
        ({"dynamic": {"exploration": 1}}, ["dynamic.exploration: ", "less than 1"]),
        (
            {"dynamic": {"controller": "static", "calm_steps": 9}},
            ['dynamic.calm_steps: expected this key only with "controller": "threshold"', "=9"],
        ),
        ({"dynamic": {"seed": 1}}, ["dynamic.seed: expected this key only with", '"adaptive"']),
        ({"dynamic": {"controller": "schedule"}}, ["dynamic.schedule: expected at least one"]),
        (
            {"dynamic": {"controller": "schedule", "schedule": {"step": 1}}},
            ["dynamic.schedule: expected a list of phases"],
        ),
        (
            {"dynamic": {"controller": "schedule", "schedule": [{"epoch": 1, "step": 1}]}},
            ['dynamic.schedule[0]: expected either "step" or "epoch"; received both'],
        ),
        (
            {"dynamic": {"controller": "schedule", "schedule": [{"policy": "float32"}]}},
            ["dynamic.schedule[0]", "received neither"],
        ),
        (
            {"dynamic": {"controller": "schedule", "schedule": [{"step": 1, "policy": "float23"}]}},
            ["dynamic.schedule[0].policy: expected one of", 'Did you mean "float32"?'],
        ),
        ({"dynamic": "threshold"}, ["dynamic: expected an object or null"]),
        (
            {"loss_scale": {"max_scale": float("inf")}},
            ["loss_scale.max_scale: ", "max_scale=Infinity"],
        ),
        ({"clipping": {"kind": "value", "limit": float("nan")}}, ["clipping.limit: ", "limit=NaN"]),
        ({"a b\n": {"c": float("-inf")}}, [r'["a b\n"].c: expected a finite number', "-Infinity"]),
        ({"rules": [[[]]]}, ["rules[0]: expected an object"]),
        ({1: 2}, ["expected strings as keys. Received: 1"]),
        ({"loss_scale": {None: 2}}, ["loss_scale: expected strings as keys. Received: null"]),
        ({"policy": object()}, ["policy: expected one of", "(of type object)"]),
        ([], ["expected a dict. Received: a list of 0"]),
    ],
    ids=lambda v: None if isinstance(v, list) else "case",
)
def test_refusals_name_path_expected_and_received(values, words):
    text = refusal(values)
    for word in words:
        assert word in text
    if isinstance(values, dict) and all(isinstance(key, str) for key in values):
        with pytest.raises(ConfigError) as caught:  # the same in Python
            PrecisionConfig(**values)
        assert str(caught.value) == text


def test_several_problems_are_one_error():
    lines = refusal({"policy": 1, "kernels": 1, "jit_compile": 1}).split("\n")
    assert [line.partition(":")[0] for line in lines] == ["policy", "kernels", "jit_compile"]
    many = {"policy": 1, "kernels": 1, "jit_compile": 1, "rules": [1], "x": 1}
    lines = refusal(many).split("\n")
    assert len(lines) == 3
    assert lines[2] == "… and 3 more problems."


def test_deep_cyclic_and_unprintable_values_from_python():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert "32 levels" in refusal({"rules": deep})
    cycle: dict = {}
    cycle["rules"] = cycle
    assert "rules: expected a list" in refusal(cycle)
    shared: list = []
    for _ in range(30):
        shared = [shared, shared]  # 2**30 places
    assert "rules[0]: expected an object" in refusal({"rules": shared})

    class Rude:
        def __repr__(self):
            raise RuntimeError("no")

    assert "of type Rude" in refusal({"policy": Rude()})


def test_sections_alone_give_config_errors_too():
    with pytest.raises(ConfigError, match=r"^growth_factor: expected a number greater than 1"):
        LossScaleConfig(growth_factor=0.5)
    with pytest.raises(ConfigError, match=r"^layer: unknown key.*Did you mean \"layers\""):
        PrecisionRule(layer="a", policy="auto")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="which say where"):
        PrecisionRule(policy="auto")
    with pytest.raises(ConfigError, match=r"^max_norm: this key is needed"):
        GlobalNormConfig()  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"^policy: "):
        PrecisionConfig.model_validate({"policy": 1})
    with pytest.raises(ConfigError, match=r"^policy: "):
        PrecisionConfig.model_validate_json('{"policy": 1}')
    with pytest.raises(ConfigError, match="UTF-8"):
        PrecisionConfig.model_validate_json('{"\ud800": 1}')


# --- Values ----------------------------------------------------------------------------------


def test_frozen_hashable_and_derived_by_copy():
    config = PrecisionConfig.from_json(FROZEN)
    with pytest.raises(ConfigError, match=r"frozen.*replace\(policy="):
        config.policy = "float32"  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"frozen.*del policy"):
        del config.policy
    changed = config.replace(policy="float32")
    assert (config.policy, changed.policy) == ("auto", "float32")
    assert changed.rules == config.rules
    assert config.model_copy(update={"policy": "float32"}) == changed
    with pytest.raises(ConfigError, match="policy"):
        config.model_copy(update={"policy": "float31"})
    assert len({config, changed, copy.deepcopy(config)}) == 2


def test_what_was_set_survives_copies_pickles_and_json(tmp_path):
    config = PrecisionConfig.from_dict(
        {"kernels": True, "rules": [{"layers": "a", "policy": None}], "loss_scale": {}}
    )
    config.to_json(tmp_path / "c.json")
    for twin in (
        copy.copy(config),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        PrecisionConfig.from_json(tmp_path / "c.json"),
        config.replace(),
    ):
        assert twin == config
        assert twin.model_fields_set == {"kernels", "rules", "loss_scale"}
        assert twin.rules[0].model_fields_set == {"layers", "policy"}
        assert twin.to_dict() == config.to_dict()


names = st.text(min_size=1, max_size=8).filter(
    lambda s: not any("\ud800" <= c <= "\udfff" for c in s)
)
policies = st.sampled_from(
    ["auto", "float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
)
positive = st.floats(2.0**-126, 2.0**100)
rules = st.fixed_dictionaries(
    {"layers": names, "policy": policies | st.none()},
    optional={
        "layer_type": st.sampled_from(["Dense", "Conv2D"]),
        "backward": st.sampled_from(["float32", None]),
        "activations": st.sampled_from(["int8", "int4", "sparse", "recompute", None]),
        "kernel": st.booleans() | st.none(),
    },
)
scales = st.fixed_dictionaries(
    {},
    optional={
        "initial_scale": st.floats(1, 2**24) | st.integers(1, 2**24) | st.none(),
        "growth_steps": st.integers(1, 10**6),
        "growth_factor": st.floats(1.001, 10),
        "backoff_factor": st.floats(0.001, 0.999),
        "hysteresis": st.integers(1, 10),
    },
)
clippings = st.one_of(
    st.fixed_dictionaries({"kind": st.just("global_norm"), "max_norm": positive}),
    st.fixed_dictionaries({"kind": st.just("value"), "limit": positive}),
    st.fixed_dictionaries({"kind": st.just("adaptive"), "ratio": positive}),
    st.fixed_dictionaries({"kind": st.just("anomaly")}, optional={"z": positive}),
)
counts = st.integers(1, 2**31 - 1)
shared = {
    "every": counts,
    "sample_every": counts,
    "max_blocks": st.integers(1, 1000),
    "max_plans": st.integers(2, 1000),
    "predictive_scale": st.booleans(),
}
begins = st.sampled_from(["step", "epoch"]).flatmap(
    lambda key: st.fixed_dictionaries(
        {key: st.integers(0, 2**31 - 1)},
        optional={"policy": st.sampled_from(["float32", "mixed_float16", None])},
    )
)
dynamics = st.one_of(
    st.fixed_dictionaries({"controller": st.just("static")}, optional=shared),
    st.fixed_dictionaries(
        {
            "controller": st.just("schedule"),
            "schedule": st.lists(begins, min_size=1, max_size=3),
        },
        optional=shared,
    ),
    st.fixed_dictionaries(
        {},
        optional={
            **shared,
            "controller": st.just("threshold"),
            "outlier_z": positive,
            "underflow": st.floats(0, 1),
            "lost_updates": st.floats(0, 1),
            "calm_steps": counts,
        },
    ),
    st.fixed_dictionaries(
        {"controller": st.just("adaptive")},
        optional={
            **shared,
            "exploration": st.floats(0, 0.99),
            "seed": st.integers(0, 2**31 - 1),
        },
    ),
)
valid = st.fixed_dictionaries(
    {},
    optional={
        "policy": policies,
        "rules": st.lists(rules, max_size=3),
        "kernels": st.booleans(),
        "jit_compile": st.booleans() | st.none(),
        "loss_scale": scales,
        "clipping": clippings | st.none(),
        "master_weights": st.booleans() | st.sampled_from(["split", "stochastic"]),
        "dynamic": st.none() | dynamics,
    },
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(valid)
def test_round_trip(values):
    config = PrecisionConfig.from_dict(values)
    assert config.to_dict() == values
    through_json = json.loads(json.dumps(config.to_dict()))
    assert PrecisionConfig.from_dict(through_json) == config
    assert hash(PrecisionConfig.from_dict(through_json)) == hash(config)


def positions(value, path=()):
    """Paths to every place in a tree, its keys included."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in items:
        yield from positions(child, (*path, key))


@settings(max_examples=200, deadline=None)
@given(valid, st.data())
def test_a_mutated_file_is_valid_or_a_config_error(values, data):
    path = data.draw(st.sampled_from(list(positions(values))))
    tree = {"root": copy.deepcopy(values)}
    holder, key = tree, "root"
    for step in path:
        holder, key = holder[key], step
    if data.draw(st.booleans()) or not path:
        holder[key] = data.draw(anything)
    elif isinstance(holder, dict):
        holder[data.draw(st.text(max_size=8))] = holder.pop(key)
    try:
        PrecisionConfig.from_dict(tree["root"])
    except ConfigError as error:
        checked(error)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12), st.integers(0, 600), st.integers(0, 12))
@example(b"[" * 100_000, 0, 0)
@example(b"\xef\xbb\xbf", 0, 0)
def test_a_mutated_text_is_valid_or_a_config_error(noise, at, cut):
    text = FROZEN.read_bytes()
    try:
        PrecisionConfig.model_validate_json(text[:at] + noise + text[at + cut :])
    except ConfigError as error:
        checked(error)


# --- The schema ------------------------------------------------------------------------------


def test_the_shipped_schema_is_that_of_the_class():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), (
        "write it anew: python -m deepseek_hpf.config_schema"
    )
    assert json.loads(schema_text()) == PrecisionConfig.json_schema()


def test_the_schema_knows_and_describes_every_key():
    schema = PrecisionConfig.json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == {"$schema", *PrecisionConfig.model_fields}
    for section in [schema, *schema["$defs"].values()]:
        assert section["additionalProperties"] is False
        assert section["description"]
        for key, value in section["properties"].items():
            assert value["description"], key
    assert "kind" in schema["$defs"]["AnomalyConfig"]["required"]
    assert schema["properties"]["policy"]["enum"][0] == "auto"
