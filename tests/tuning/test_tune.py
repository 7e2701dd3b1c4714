import json

import keras
import numpy as np
import pytest

import deepseek_hpf as hpf
from deepseek_hpf import ConfigError, MixedPrecisionPolicy, PrecisionConfig, tune
from deepseek_hpf.errors import ConfigTypeError
from deepseek_hpf.tuning import sequence
from deepseek_hpf.tuning.trial import Trial

RNG = np.random.default_rng()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPSEEK_HPF_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def no_layer_is_measured(monkeypatch):
    """Mixed plans have tests of their own."""
    monkeypatch.setattr(sequence, "try_mixed_plans", lambda search, seconds: None)


@pytest.fixture
def everything_is_fast(monkeypatch):
    """As on a machine where no precision is known to be slow."""
    monkeypatch.setattr(sequence, "hopeless_policies", lambda search: {})


def small_model(width=8, name=None):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(width, activation="gelu"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(3),
        ],
        name=name,
    )
    model.compile("adam", "mse")
    return model


def batch(rows=8):
    return RNG.random((rows, 6), "float32"), RNG.random((rows, 3), "float32")


def quick(model, data, **arguments):
    return tune(model, data, **{"time_budget": 20.0, "cache": False, **arguments})


def names(result):
    return {candidate.name for candidate in result.candidates}


@pytest.mark.slow
def test_a_whole_search(everything_is_fast, tmp_path):
    model, data, lines = small_model(), batch(), []
    model.fit(*data, verbose=0)
    function, optimizer = model.train_function, model.optimizer
    weights, slots = model.get_weights(), [host(v) for v in optimizer.variables]
    result = quick(model, data, progress=lines.append)

    assert {"float32", "mixed_bfloat16", "mixed_float16"} <= names(result)
    timed = [c for c in result.candidates if c.spread]
    assert result.best in timed
    assert all(c.ratio <= 1.02 * result.best.ratio for c in timed if c.is_blanket)
    assert result.best.loss_error <= result.error_budget
    assert any("best so far" in line for line in lines)

    assert model.train_function is function
    assert model.optimizer is optimizer
    for was, now in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    for was, now in zip(slots, optimizer.variables, strict=True):
        np.testing.assert_array_equal(was, host(now))

    result.to_json(tmp_path / "precision.json")
    policy = MixedPrecisionPolicy.from_json(tmp_path / "precision.json")
    assert policy.config == result.config
    report = hpf.apply_policy(model, policy)
    planned = {path: layer.policy for path, layer in result.plan.items()}
    assert {path: layer.policy for path, layer in report.plan.items()} == planned
    model.fit(*data, verbose=0)


def host(variable):
    return np.array(keras.ops.convert_to_numpy(variable.value))


def test_nothing_is_tried_that_the_hardware_is_slow_at(monkeypatch):
    monkeypatch.setattr(
        sequence,
        "hopeless_policies",
        lambda search: {"mixed_bfloat16": "made up", "mixed_float16": "made up"},
    )
    result = quick(small_model(), batch(), time_budget=0.001)
    assert result.config.policy == "float32"
    left_out = [c for c in result.candidates if c.name.startswith("mixed")]
    assert left_out
    assert all(c.note == "made up" and c.seconds is None for c in left_out)


@pytest.mark.slow
def test_what_overflows_does_not_win(everything_is_fast):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.layers[0].set_weights([np.full((4, 4), 3e4), np.zeros(4)])
    result = quick(model, (np.full((2, 4), 10.0, "float32"), np.ones((2, 1), "float32")))
    float16 = next(c for c in result.candidates if c.name == "mixed_float16")
    assert "finite" in float16.note
    assert result.config.policy != "mixed_float16"


@pytest.mark.slow
def test_an_error_beyond_the_budget_does_not_win():
    result = quick(small_model(), batch(), error_budget=1e-12)
    low = [c for c in result.candidates if c.name == "mixed_bfloat16" and c.loss_error]
    assert result.config.policy == "float32"
    assert all("budget" in c.note for c in low)


def test_a_second_call_finds_the_first_ones_result():
    data = batch()
    first, again = short(small_model(), data), short(small_model(), data)
    assert not first.is_cached
    assert again.is_cached
    assert again.config == first.config
    assert again.candidates == first.candidates
    assert "cache" in str(again)
    for other in (
        short(small_model(width=16), data),
        short(small_model(), batch(rows=4)),
        short(small_model(), data, error_budget=0.2),
    ):
        assert not other.is_cached


def short(model, data, **arguments):
    """Tunes for the shortest time there is: float32 is measured, and the rest left out."""
    return tune(model, data, time_budget=0.001, **arguments)


def test_auto_finds_the_tuned_plan(caplog):
    result = short(small_model(), batch())
    with caplog.at_level("INFO", logger="deepseek_hpf"):
        report = hpf.apply_policy(small_model(), "auto")
    assert report.policy == result.config.policy
    assert "as tuned" in report.tuned
    assert "as tuned" in str(report)
    assert "as tuned" in caplog.text
    assert not hpf.apply_policy(small_model(width=9), "auto").tuned
    assert not hpf.apply_policy(small_model(), "mixed_bfloat16").tuned


def test_rules_for_single_layers_follow_a_model_of_other_names():
    from deepseek_hpf.adapters import tuned

    config = PrecisionConfig(
        policy="mixed_bfloat16", rules=[{"layers": "first", "policy": "float32"}]
    )

    def model(first):
        layers = [keras.Input((4,)), keras.layers.Dense(4, name=first), keras.layers.Dense(2)]
        made = keras.Sequential(layers)
        made.compile("sgd", "mse")
        return made

    tuned.keep(model("first"), ["made up"], {"config": config.to_dict()})
    own = PrecisionConfig(rules=[{"layers": "other*", "kernel": False}])
    report = hpf.apply_policy(model("other[1]"), own)
    assert report.row("other[1]").after == "float32"
    assert report.policy == "mixed_bfloat16"


@pytest.mark.slow
def test_ctrl_c_gives_the_best_so_far(monkeypatch):
    model, data = small_model(), batch()
    calls = []

    def interrupted(self, *arguments, **keywords):
        calls.append(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "time", interrupted)
        result = tune(model, data, time_budget=20.0)
    assert calls
    assert "interrupted" in str(result)
    assert result.best.ratio is not None
    assert not short(model, data).is_cached


def test_little_time_leaves_float32_at_least():
    result = quick(small_model(), batch(), time_budget=0.001)
    assert result.best.name == "float32"
    assert any("no time" in c.note for c in result.candidates)


def test_a_dataset_gives_its_first_batch():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return batch()

    for data in (Batches(), iter([batch()])):
        assert quick(small_model(), data, time_budget=0.001).best.name == "float32"


def test_structures_and_sample_weights():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    outputs = {"y": keras.layers.Dense(1, name="y")(keras.layers.Concatenate()([a, b]))}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("sgd", {"y": "mse"})
    x = {"a": RNG.random((4, 3)), "b": RNG.random((4, 2))}
    data = (x, {"y": RNG.random((4, 1))}, {"y": np.ones(4)})
    assert quick(model, data, time_budget=0.001).best.name == "float32"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": (np.ones((2, 5)), np.ones((2, 3)))}, "batch"),
        ({"batch": iter([])}, "empty"),
        ({"batch": 3}, "dataset"),
        ({"time_budget": 0}, "time_budget"),
        ({"time_budget": "long"}, "time_budget"),
        ({"error_budget": -1.0}, "error_budget"),
        ({"error_budget": float("nan")}, "error_budget"),
    ],
)
def test_bad_input_is_told(arguments, words):
    model = small_model()
    before = model.get_weights()
    with pytest.raises(ConfigError, match=words):
        tune(model, **{"batch": batch(), "time_budget": 5.0, "cache": False, **arguments})
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_what_is_no_compiled_model_is_refused():
    with pytest.raises(ConfigTypeError, match=r"keras\.Model"):
        tune(keras.layers.Dense(1), batch())
    with pytest.raises(ConfigError, match="compile"):
        tune(keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)]), batch())


def test_a_result_survives_json():
    result = quick(small_model(), batch(), time_budget=0.001)
    again = hpf.TuningResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again == result
    with pytest.raises(ConfigError, match="to_dict"):
        hpf.TuningResult.from_dict({})


def test_the_plot_is_written(tmp_path):
    result = quick(small_model(), batch(), time_budget=0.001)
    result.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="png"):
        result.plot(tmp_path / "front.xyz")
