import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import deepseek_hpf.adapters.critical as critical_module
from deepseek_hpf.adapters.apply import apply_policy
from deepseek_hpf.adapters.export import export
from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError, ConfigTypeError, PrecisionError
from deepseek_hpf.policy import MixedPrecisionPolicy

LOAD_WITHOUT_THE_PACKAGE = """
import sys
sys.modules["deepseek_hpf"] = None  # any import of it fails
import keras, numpy as np
folder = sys.argv[1]
x = np.load(f"{folder}/x.npy")
for name in sys.argv[2:]:
    model = keras.models.load_model(f"{folder}/{name}.keras", compile=False)
    np.save(f"{folder}/{name}.npy", keras.ops.convert_to_numpy(keras.ops.cast(model(x), "float32")))
    # A nested model computes nothing itself, and Keras does not save its policy.
    own = [layer for layer in model.layers[1:] if not isinstance(layer, keras.Model)]
    print(name, *(layer.compute_dtype for layer in own))
"""


class Scaled(layers.Layer):
    """A layer of the user's that is not registered."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        return x * self.scale


class Subclassed(keras.Model):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden, self.head = layers.Dense(units), layers.Dense(1)

    def build(self, shape):
        self.hidden.build(shape)
        self.head.build((None, self.units))

    def call(self, x):
        return self.head(self.hidden(x))

    def get_config(self):
        return {"units": self.units, "name": self.name}


def functional():
    x = keras.Input((6, 4))
    y = layers.MultiHeadAttention(2, 2, dropout=0.1, name="attend")(x, x)
    inner = keras.Sequential([keras.Input((6, 4)), layers.Dense(4, name="fc")], name="inner")
    y = layers.Dropout(0.1, seed=1)(layers.LayerNormalization()(inner(y)))
    y = layers.Dense(3, activation="softmax", name="head")(layers.GlobalAveragePooling1D()(y))
    return keras.Model(x, y)


def numbers(*shape):
    return np.random.default_rng().normal(size=shape).astype("float32")


def outputs(model, x):
    return ops.convert_to_numpy(ops.cast(model(x), "float32"))


def ours_in(model):
    return [w.path for w in walk(model) if "call" in vars(w.layer)] + [
        name for name in vars(model) if "hpf" in name or name in ("train_step", "call")
    ]


@pytest.mark.slow
def test_saved_models_load_without_the_package(tmp_path, global_dtype_policy):
    with MixedPrecisionPolicy("mixed_bfloat16").scope():
        model = functional()
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = numbers(4, 6, 4), np.arange(4) % 3
    np.save(tmp_path / "x.npy", x)
    model.save(tmp_path / "scope.keras")
    np.save(tmp_path / "scope_expected.npy", outputs(model, x))
    apply_policy(model, "mixed_bfloat16")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "applied.keras")
    copies = {
        "exported": export(model, tmp_path / "exported.keras"),
        "float32": export(model, tmp_path / "float32.keras", dtype="float32"),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_THE_PACKAGE, tmp_path, "scope", "applied", *copies],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    loaded = {name: np.load(tmp_path / f"{name}.npy") for name in found}
    # Bit-equal; what a composite layer decided inside is not in a file.
    np.testing.assert_array_equal(loaded["scope"], np.load(tmp_path / "scope_expected.npy"))
    for name, copy in copies.items():
        np.testing.assert_array_equal(loaded[name], outputs(copy, x))
        own = [layer for layer in copy.layers[1:] if not isinstance(layer, keras.Model)]
        assert found[name] == [layer.compute_dtype for layer in own]
    np.testing.assert_array_equal(loaded["applied"], loaded["exported"])
    np.testing.assert_allclose(loaded["float32"], outputs(model, x), atol=0.02)
    assert set(found["float32"]) == {"float32"}
    assert not [p for p in tmp_path.iterdir() if p.suffix not in (".keras", ".npy")]


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "mixed_float16"])
def test_a_copy_has_the_weights_and_nothing_of_ours(dtype):
    model = functional()
    model.compile("adam", "sparse_categorical_crossentropy")
    apply_policy(model, "mixed_bfloat16")
    before = model.get_weights()
    copy = export(model, dtype=dtype)
    assert ours_in(copy) == []
    assert ours_in(model) != []
    assert not copy.compiled
    rounding = 2**-8 if dtype == "bfloat16" else 0
    for old, new, variable in zip(before, copy.get_weights(), copy.weights, strict=True):
        np.testing.assert_allclose(np.asarray(new, "float32"), old, rtol=rounding)
        assert variable.dtype == ("bfloat16" if dtype == "bfloat16" else "float32")
    if dtype is None:
        saved = [(w.path, w.layer.dtype_policy) for w in walk(model) if w.parent != "attend"]
        assert [(w.path, w.layer.dtype_policy) for w in walk(copy) if w.parent != "attend"] == saved
    else:
        assert {w.layer.dtype_policy.name for w in walk(copy)} == {dtype}
    copy.layers[-1].kernel.assign(copy.layers[-1].kernel * 0)
    for old, same in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, same)


def test_a_layer_whose_result_was_cast_is_float32_in_the_copy(monkeypatch):
    monkeypatch.setattr(critical_module, "LARGE_HEAD_ELEMENTS", 1)
    model = keras.Sequential([keras.Input((4,)), Scaled(), layers.Dense(3, name="head")])
    assert apply_policy(model, "mixed_bfloat16").row("head").after == "mixed_bfloat16"
    copy = export(model)
    assert [layer.compute_dtype for layer in copy.layers] == ["bfloat16", "float32"]
    assert model.layers[-1].compute_dtype == "bfloat16"
    np.testing.assert_allclose(outputs(copy, np.eye(4)), outputs(model, np.eye(4)), rtol=0.02)


def test_float32_masters_are_what_is_exported(global_dtype_policy):
    keras.config.set_dtype_policy("bfloat16")
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(2**-12), "mae")
    settings = PrecisionConfig(policy="bfloat16", master_weights=True)
    apply_policy(model, settings)
    model.layers[0].kernel.assign([[1.0]])
    # The gradient of the mean absolute error is 1, each step 2**-12: lost on a bfloat16 of 1.
    model.fit(np.ones((3, 1)), np.full((3, 1), -9.0), batch_size=1, verbose=0)
    assert float(export(model, dtype="float32").get_weights()[0][0, 0]) == 1 - 3 * 2**-12
    assert float(np.asarray(export(model).get_weights()[0], "float32")[0, 0]) == 1.0


def test_subclassed_models_that_can_be_made_anew():
    model = Subclassed(units=2)
    x = numbers(3, 4)
    model(x)
    apply_policy(model, "mixed_bfloat16")
    copy = export(model, dtype="float32")
    assert type(copy) is Subclassed
    assert ours_in(copy) == []
    assert {w.layer.dtype_policy.name for w in walk(copy)} == {"float32"}
    np.testing.assert_allclose(outputs(copy, x), outputs(model, x), atol=0.2)


def test_a_subclassed_model_that_cannot_says_so():
    class NoConfig(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, x):
            return self.layer(x)

    model = NoConfig(layers.Dense(1))
    model(numbers(1, 2))
    with pytest.raises(ConfigError, match="from_config"):
        export(model)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.keras"
    path.write_bytes(b"old")
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save", lambda self, p: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            export(model, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    export(model, path)
    assert keras.models.load_model(path).count_params() == 3
    assert path.stat().st_mode & 0o444 == 0o444


def test_what_cannot_be_exported(tmp_path):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    for value in (np.inf, np.nan, 0.0):
        model.layers[0].kernel.assign([[value], [1.0]])
        export(model, dtype="float16")
    model.layers[0].kernel.assign([[1e5], [1.0]])
    with pytest.raises(PrecisionError, match=r"kernel.*infinite in float16"):
        export(model, dtype="float16")
    with pytest.raises(ConfigError, match=r"\.keras"):
        export(model, tmp_path / "model.h5")
    for dtype in ("float33", "int8", 3):
        with pytest.raises(ConfigError, match="Received: dtype="):
            export(model, dtype=dtype)
    with pytest.raises(ConfigError, match="built"):
        export(keras.Sequential([layers.Dense(1)]))
    with pytest.raises(ConfigTypeError, match="model="):
        export("model")
