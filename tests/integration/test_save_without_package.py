"""A model built in the scope loads, bit for bit, where the package cannot be imported."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from deepseek_hpf.policy import MixedPrecisionPolicy

# The other process: any import of the package fails; models, inputs and results are files.
LOAD = """
import importlib.abc, json, sys
from pathlib import Path

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "deepseek_hpf":
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocker())
try:
    import deepseek_hpf
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package can be imported")

import keras, numpy as np
folder = Path(sys.argv[1])
for file in sorted(folder.glob("*.keras")):
    model = keras.models.load_model(file, compile=False)
    outputs = model(np.load(folder / f"{file.stem}_inputs.npy"), training=False)
    outputs = keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))
    np.save(folder / f"{file.stem}_loaded.npy", outputs)
    computing = [l for l in model._flatten_layers()
                 if not isinstance(l, keras.Model | keras.layers.InputLayer)]
    layers = [(type(l).__name__, type(l.dtype_policy).__name__, l.compute_dtype, l.variable_dtype)
              for l in computing]
    (folder / f"{file.stem}_loaded.json").write_text(json.dumps(layers))
assert not any(name.partition(".")[0] == "deepseek_hpf" for name in sys.modules)
"""


def functional():
    block_in = keras.Input((4, 6), name="block_in")
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")(block_in, block_in)
    block = keras.Model(block_in, keras.layers.LayerNormalization()(attention), name="block")
    inputs = keras.Input((4, 6))
    x = keras.layers.BatchNormalization()(block(inputs))
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax", dtype="float32")(x))


def sequential():
    conv = keras.layers.Conv2D(3, 3, activation="relu")
    pool = keras.layers.GlobalAveragePooling2D()
    return keras.Sequential([keras.Input((5, 5, 2)), conv, pool, keras.layers.Dense(2)])


def described(model):
    """What the other process writes for every layer.

    Keras writes no policy for a model itself, as opposed to its layers, nor for an input layer;
    neither computes anything. Names are left out: children of composite layers are numbered anew
    by each process.
    """
    return [
        [
            type(layer).__name__,
            type(layer.dtype_policy).__name__,
            layer.compute_dtype,
            layer.variable_dtype,
        ]
        for layer in model._flatten_layers()
        if not isinstance(layer, keras.Model | keras.layers.InputLayer)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("global_dtype_policy")
def test_saved_models_load_without_the_package(tmp_path):
    policy = MixedPrecisionPolicy("mixed_bfloat16")
    rng = np.random.default_rng()
    models = {}
    for build in (functional, sequential):
        with policy.scope():
            model = models[build.__name__] = build()
        for weight in model.weights:
            # Fresh statistics as well: a batch normalisation at its start would be the identity.
            weight.assign(rng.uniform(0.1, 1.0, weight.shape))
        inputs = rng.normal(size=(2, *model.input_shape[1:])).astype("float32")
        np.save(tmp_path / f"{build.__name__}_inputs.npy", inputs)
        model.save(tmp_path / f"{build.__name__}.keras")
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, model in models.items():
        loaded = json.loads((tmp_path / f"{name}_loaded.json").read_text())
        assert loaded == described(model)
        assert {"bfloat16"} <= {compute for _, _, compute, _ in loaded}
        outputs = model(np.load(tmp_path / f"{name}_inputs.npy"), training=False)
        expected = keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}_loaded.npy"), expected)
