"""A `.keras` file holds the whole state of the wrapper, and loads where the package is missing."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

import deepseek_hpf as hpf
from deepseek_hpf.checkpoint import training_state

X = np.random.default_rng(3).normal(size=(16, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def trained_model(dtype):
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, dtype=dtype)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, dtype=dtype)(hidden))
    optimizer = hpf.LossScaleOptimizer(
        keras.optimizers.Adam(0.01),
        2.0**16,
        2,
        growth_factor=4.0,
        clipping=hpf.clipping.Anomaly(),
        master_weights=True,
    )
    model.compile(optimizer, "mse")
    with np.errstate(all="ignore"):
        model.fit(X, Y, batch_size=4, verbose=0)
        model.fit(X * np.inf, Y, batch_size=8, verbose=0)
    return model


def bits(variables):
    values = [training_state.read_value(v) for v in variables]
    return [(v.shape, v.dtype.name, v.tobytes()) for v in values]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = trained_model("bfloat16")
    path = tmp_path_factory.mktemp("files") / "model.keras"
    model.save(path)
    return model, path


def test_scale_counters_slots_and_masters_come_back_bit_for_bit(saved):
    model, path = saved
    assert int(model.optimizer.skipped_steps) == 2
    loaded = keras.saving.load_model(path)
    assert type(loaded.optimizer) is hpf.LossScaleOptimizer
    assert bits(loaded.optimizer.variables) == bits(model.optimizer.variables)
    assert bits(loaded.variables) == bits(model.variables)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    dtypes = [v.dtype for v in model.optimizer.variables]
    assert dtypes.count("float32") > len(model.trainable_variables)  # the masters are there


def test_training_goes_on_with_the_same_bits(saved):
    model, path = saved
    loaded = keras.saving.load_model(path)
    continued = keras.saving.load_model(path)
    for other in (loaded, continued):
        other.fit(X, Y, batch_size=4, verbose=0, shuffle=False)
    assert bits(loaded.variables) == bits(continued.variables)
    model.fit(X, Y, batch_size=4, verbose=0, shuffle=False)
    assert bits(loaded.variables) == bits(model.variables)
    assert bits(loaded.optimizer.variables) == bits(model.optimizer.variables)


@pytest.mark.slow
def test_loads_uncompiled_where_the_package_cannot_be_imported(tmp_path):
    model = trained_model("mixed_float16")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    code = f"""
        import sys
        sys.modules["deepseek_hpf"] = None
        import keras, numpy as np
        model = keras.saving.load_model({str(tmp_path / "model.keras")!r}, compile=False)
        x = np.load({str(tmp_path / "x.npy")!r})
        np.save({str(tmp_path / "y.npy")!r}, keras.ops.convert_to_numpy(model(x)))
        print(*[layer.compute_dtype for layer in model.layers])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [layer.compute_dtype for layer in model.layers]
    expected = keras.ops.convert_to_numpy(model(X))
    assert np.load(tmp_path / "y.npy").tobytes() == expected.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    ["import keras, deepseek_hpf", "import deepseek_hpf, keras; deepseek_hpf.PrecisionConfig"],
)
def test_loads_compiled_where_the_package_is_merely_imported(tmp_path, imports):
    """Keras finds our optimizer's class though the package's root is lazy."""
    trained_model("float32").save(tmp_path / "model.keras")
    code = f"""
        {imports}
        model = keras.models.load_model({str(tmp_path / "model.keras")!r})
        print(type(model.optimizer).__module__, int(model.optimizer.skipped_steps))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["deepseek_hpf.optimizers.loss_scale_optimizer", "2"]
