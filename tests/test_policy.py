"""`MixedPrecisionPolicy`: names, configuration, values, and the scope."""

import copy
import json
import logging
import pickle
import threading

import keras
import numpy as np
import pytest

from deepseek_hpf import hardware
from deepseek_hpf import policy as policy_module
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.policy import MixedPrecisionPolicy
from deepseek_hpf.scheduling.auto import choose_policy

BACKEND = keras.backend.backend()
NAMES = ("float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")
CLIPPED = {"clipping": {"kind": "global_norm", "max_norm": 1.0}}

pytestmark = pytest.mark.usefixtures("global_dtype_policy")


def current():
    return keras.config.dtype_policy()


# Names


@pytest.mark.parametrize("name", NAMES)
def test_names_are_keras_names(name):
    ours, theirs = MixedPrecisionPolicy(name), keras.DTypePolicy(name)
    assert ours.name == theirs.name == name
    assert ours.compute_dtype == theirs.compute_dtype
    assert ours.variable_dtype == theirs.variable_dtype
    assert ours.quantization_mode is None
    assert ours.config.policy == name
    assert name in ours.reason
    assert not ours.is_auto


def test_auto_is_what_this_machine_does_best():
    choice = choose_policy(hardware.usable_devices(BACKEND), BACKEND)
    policy = MixedPrecisionPolicy()
    assert (policy.name, policy.reason) == (choice.name, choice.reason)
    assert policy.is_auto
    assert policy.config.policy == "auto"


def test_auto_follows_the_devices_that_are_usable(monkeypatch):
    gpu = hardware.Device(
        "gpu", "nvidia", "V100", support={"float16": hardware.Support("native", "made up")}
    )
    monkeypatch.setattr(hardware, "usable_devices", lambda backend: [gpu])
    policy = MixedPrecisionPolicy("auto")
    assert (policy.name, policy.compute_dtype) == ("mixed_float16", "float16")
    assert "V100" in policy.reason


def test_none_is_the_global_policy():
    for name in NAMES:
        keras.config.set_dtype_policy(name)
        assert MixedPrecisionPolicy(None).name == name


def test_the_name_is_always_standard():
    # Keras takes PyTorch's names too, and keeps them.
    assert keras.DTypePolicy("torch.float32").name == "torch.float32"
    assert MixedPrecisionPolicy("torch.float32").name == "float32"


@pytest.mark.parametrize(
    "bad",
    ["", "Auto", "mixed_float15", "@mixed_float16!", "mixed_float16" * 100, "int8_from_float32"],
)
def test_bad_names_have_keras_wording(bad):
    with pytest.raises(ConfigError, match=r"Cannot convert '.*'auto'.*Received: name=") as caught:
        MixedPrecisionPolicy(bad)
    assert isinstance(caught.value, ValueError)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean 'mixed_bfloat16'\?"):
        MixedPrecisionPolicy("mixed_bf16")


@pytest.mark.parametrize("bad", [123, 1.5, True, ["float32"], keras.DTypePolicy("float32")])
def test_names_that_are_no_strings(bad):
    with pytest.raises(
        ConfigTypeError, match=r"'name' must be a string.*Received: name="
    ) as caught:
        MixedPrecisionPolicy(bad)
    assert isinstance(caught.value, TypeError)


# Configuration


def test_config_comes_as_object_dictionary_or_file(tmp_path):
    content = {"policy": "mixed_float16", **CLIPPED}
    file = tmp_path / "precision.json"
    file.write_text(json.dumps(content))
    made = [
        MixedPrecisionPolicy(config=PrecisionConfig.from_dict(content)),
        MixedPrecisionPolicy(config=content),
        MixedPrecisionPolicy(config=file),
        MixedPrecisionPolicy(config=str(file)),
        MixedPrecisionPolicy.from_json(file),
        MixedPrecisionPolicy("mixed_float16", config=CLIPPED),
    ]
    for policy in made:
        assert policy.name == "mixed_float16"
        assert policy.config == PrecisionConfig.from_dict(content)
        assert policy == made[0]
        assert hash(policy) == hash(made[0])
    assert content == {"policy": "mixed_float16", **CLIPPED}


def test_the_configuration_written_out_trains_the_same(tmp_path):
    file = tmp_path / "precision.json"
    policy = MixedPrecisionPolicy("mixed_float16", config=CLIPPED)
    policy.config.to_json(file)
    assert MixedPrecisionPolicy.from_json(file) == policy


def test_a_name_refines_auto_but_contradicts_another_name():
    assert MixedPrecisionPolicy("float32", config={"policy": "auto"}).config.policy == "float32"
    assert MixedPrecisionPolicy("auto", config={"policy": "float32"}).name == "float32"
    assert MixedPrecisionPolicy("float32", config={"policy": "float32"}).name == "float32"
    with pytest.raises(ConfigError, match=r"to agree.*name='float32', config.policy='mixed_bf"):
        MixedPrecisionPolicy("float32", config={"policy": "mixed_bfloat16"})
    keras.config.set_dtype_policy("float64")
    with pytest.raises(ConfigError, match="name='float64'"):
        MixedPrecisionPolicy(None, config={"policy": "mixed_bfloat16"})


@pytest.mark.parametrize("bad", [1, object(), ["policy"], b"policy"])
def test_config_of_another_type(bad):
    with pytest.raises(ConfigTypeError, match=r"PrecisionConfig, a dictionary.*Received: config="):
        MixedPrecisionPolicy(config=bad)


def test_config_that_is_wrong_or_missing(tmp_path):
    with pytest.raises(ConfigError, match="polcy"):
        MixedPrecisionPolicy(config={"polcy": "float32"})
    with pytest.raises(ConfigError, match=r"missing\.json"):
        MixedPrecisionPolicy.from_json(tmp_path / "missing.json")


# Values: copies, pickles, equality


@pytest.mark.parametrize(
    "clone",
    [
        copy.copy,
        copy.deepcopy,
        *(
            lambda x, p=p: pickle.loads(pickle.dumps(x, p))
            for p in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
)
def test_copies_keep_everything(clone):
    for policy in (MixedPrecisionPolicy(config=CLIPPED), MixedPrecisionPolicy("mixed_float16")):
        same = clone(policy)
        assert type(same) is MixedPrecisionPolicy
        assert same == policy
        assert hash(same) == hash(policy)
        assert (same.name, same.config, same.reason) == (policy.name, policy.config, policy.reason)
        assert same.is_auto == policy.is_auto
        with same.scope():
            assert current().name == policy.name


def test_a_pickle_keeps_the_choice_made_where_it_was_written(monkeypatch):
    text = pickle.dumps(MixedPrecisionPolicy())
    chosen = MixedPrecisionPolicy().name

    def fail(backend):
        raise AssertionError("asked again")

    monkeypatch.setattr(hardware, "usable_devices", fail)
    assert pickle.loads(text).name == chosen


def test_equality_and_hash():
    float16 = MixedPrecisionPolicy("mixed_float16")
    assert float16 == MixedPrecisionPolicy(config={"policy": "mixed_float16"})
    assert float16 != MixedPrecisionPolicy("mixed_bfloat16")
    assert float16 != MixedPrecisionPolicy("mixed_float16", config=CLIPPED)
    auto = MixedPrecisionPolicy()
    assert auto == MixedPrecisionPolicy(auto.name)
    assert len({float16, MixedPrecisionPolicy("mixed_float16"), auto}) == 2
    assert float16 != "mixed_float16"
    assert float16 is not None
    assert float16 != None  # noqa: E711


def test_a_plain_keras_policy_equals_one_with_default_settings():
    plain = keras.DTypePolicy("mixed_float16")
    ours, other = MixedPrecisionPolicy("mixed_float16"), MixedPrecisionPolicy("float32")
    clipped = MixedPrecisionPolicy("mixed_float16", config=CLIPPED)
    assert ours == plain
    assert plain == ours
    for unlike in (other, clipped):
        assert unlike != plain
        assert plain != unlike
    quantized = keras.dtype_policies.QuantizedDTypePolicy("int8", "float32")
    assert other != quantized
    assert quantized != other


@pytest.mark.parametrize("name", [*NAMES, "auto"])
def test_get_config_holds_the_name_only(name):
    policy = MixedPrecisionPolicy(name, config=CLIPPED)
    config = policy.get_config()
    assert config == {"name": policy.name}
    again = MixedPrecisionPolicy.from_config(config)
    assert again.name == policy.name
    assert config == {"name": policy.name}
    assert repr(policy) == f'<MixedPrecisionPolicy "{policy.name}">'


def test_odd_configs():
    config = {"name": "float32", "config": {"clipping": {"kind": "value", "limit": 1.0}}}
    before = copy.deepcopy(config)
    policy = MixedPrecisionPolicy.from_config(config)
    assert config == before
    assert policy.config.clipping.limit == 1.0
    assert MixedPrecisionPolicy.from_config({"name": None}).name == current().name
    assert MixedPrecisionPolicy.from_config({}).is_auto
    with pytest.raises(ConfigError, match=r"'name' only.*with loss_scale"):
        MixedPrecisionPolicy.from_config({"name": "float32", "loss_scale": 2})
    with pytest.raises(ConfigTypeError, match="Received: config=3"):
        MixedPrecisionPolicy.from_config(3)


def test_keras_serialization():
    policy = MixedPrecisionPolicy("mixed_float16")
    config = keras.dtype_policies.serialize(policy)
    again = keras.dtype_policies.deserialize(config)
    assert again == policy
    # A map that is written sets the names of its policies to None; ours stays what it is.
    mapping = keras.dtype_policies.DTypePolicyMap()
    mapping["layer"] = policy
    mapping.get_config()
    assert (policy.name, repr(policy)) == (
        "mixed_float16",
        '<MixedPrecisionPolicy "mixed_float16">',
    )


# In layers


def test_as_the_dtype_of_a_layer():
    policy = MixedPrecisionPolicy("mixed_bfloat16")
    layer = keras.layers.Dense(2, dtype=policy)
    outputs = layer(np.ones((1, 3), "float32"))
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(layer.kernel.dtype) == "float32"
    again = keras.layers.Dense.from_config(layer.get_config())
    # Rebuilt from its config, a layer holds Keras's own policy and nothing of ours.
    assert type(again.dtype_policy) is keras.DTypePolicy
    assert again.dtype_policy.name == "mixed_bfloat16"


# The scope


def test_scope_sets_the_plain_policy_and_restores():
    keras.config.set_dtype_policy("float64")
    before = current()
    policy = MixedPrecisionPolicy("mixed_bfloat16")
    with policy.scope() as entered:
        assert entered is policy
        assert type(current()) is keras.DTypePolicy
        assert current().name == "mixed_bfloat16"
        layer = keras.layers.Dense(1)
        assert type(layer.dtype_policy) is keras.DTypePolicy
    assert current() is before
    assert keras.layers.Dense(1).compute_dtype == "float64"


def nested(policy):
    scope = policy.scope()
    with scope, scope, policy.scope():
        yield


def through_one_object(policy):
    scope = policy.scope()
    with scope:
        pass
    with scope:
        yield


def as_decorator(policy):
    decorated = policy.scope()(current)
    assert decorated().name == decorated().name == policy.name
    with policy.scope():
        yield


def other_inside(policy):
    with policy.scope(), MixedPrecisionPolicy("float16").scope(), policy.scope():
        yield


def cleared_inside(policy):
    with policy.scope():
        keras.utils.clear_session()
        keras.config.set_dtype_policy(policy.name)
        yield


def changed_inside(policy):
    with policy.scope():
        keras.config.set_dtype_policy("float64")
        keras.config.set_dtype_policy(policy.name)
        yield


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit, Stop])
@pytest.mark.parametrize(
    "context",
    [nested, through_one_object, as_decorator, other_inside, cleared_inside, changed_inside],
)
def test_every_context_restores_even_when_left_by_an_error(context, error):
    keras.config.set_dtype_policy("float64")
    seen = []

    def run():
        for _ in context(MixedPrecisionPolicy("mixed_float16")):
            seen.append(current().name)
            if error is not None and seen[-1] == "mixed_float16":
                # Raised at the `yield`, inside every context that is open there.
                raise error

    def thrown():
        steps = context(MixedPrecisionPolicy("mixed_float16"))
        for _ in steps:
            seen.append(current().name)
            if seen[-1] == "mixed_float16":
                steps.throw(error)

    if error is None:
        run()
    else:
        with pytest.raises(error):
            thrown()
    assert "mixed_float16" in seen
    assert current().name == "float64"


def test_a_scope_that_cannot_be_entered_changes_nothing(monkeypatch):
    def fail(message):
        raise OSError("the log is full")

    keras.config.set_dtype_policy("float64")
    monkeypatch.setattr(policy_module, "_say_once", fail)
    with pytest.raises(OSError, match="full"), MixedPrecisionPolicy("float16").scope():
        raise AssertionError("entered")
    assert current().name == "float64"


def test_scope_does_not_leak_between_threads():
    """Four threads share one policy and one scope object, and hold it at the same moment."""
    policy = MixedPrecisionPolicy("mixed_bfloat16")
    scope, count = policy.scope(), 4
    together = threading.Barrier(count + 1, timeout=30)
    seen: list[list[str]] = [[] for _ in range(count)]

    def work(index):
        keras.config.set_dtype_policy("float64" if index % 2 else "float16")
        seen[index].append(current().name)
        together.wait()
        with scope:
            together.wait()
            seen[index].append(current().name)
            together.wait()
        seen[index].append(current().name)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    before = current().name
    together.wait()
    with scope:
        together.wait()
        # A thread started inside does not see the scope: Keras's global policy is per thread.
        fresh: list[str] = []
        inner = threading.Thread(target=lambda: fresh.append(current().name))
        inner.start()
        inner.join(30)
        assert fresh == ["float32"]
        together.wait()
        for thread in threads:
            thread.join(30)
        assert current().name == "mixed_bfloat16"
    assert current().name == before
    assert (
        seen
        == [["float16", "mixed_bfloat16", "float16"], ["float64", "mixed_bfloat16", "float64"]] * 2
    )


def test_scope_under_keras_functions():
    with MixedPrecisionPolicy("mixed_bfloat16").scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        clone = keras.models.clone_model(model)
        assert current().name == "mixed_bfloat16"
    with MixedPrecisionPolicy("float16").scope():
        late = keras.models.clone_model(model)
        assert current().name == "float16"
    for each in (model, clone, late):
        assert each.layers[0].compute_dtype == "bfloat16"
        assert type(each.layers[0].dtype_policy) is keras.DTypePolicy
        assert type(each.dtype_policy) is keras.DTypePolicy


def test_scope_says_once_what_it_does_not_do(caplog):
    caplog.set_level(logging.INFO, logger="deepseek_hpf")
    policy_module._say_once.cache_clear()
    for _ in range(2):
        with MixedPrecisionPolicy("mixed_float16").scope():
            pass
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "sets dtypes" in caplog.text
    assert "PrecisionOverrides" in caplog.text
    assert "apply_policy" in caplog.text
    policy = MixedPrecisionPolicy()
    for _ in range(2):
        with policy.scope():
            pass
    assert len(caplog.records) == 2
    assert f'"auto" is {policy.name}: {policy.reason}' in caplog.text
    assert "hpf tune" in caplog.text
