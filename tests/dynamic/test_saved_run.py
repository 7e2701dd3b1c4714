"""A `.keras` file goes on under dynamic precision, and loads without."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from scripted import bits, create_model, data, fit, scripted

import deepseek_hpf as hpf
from deepseek_hpf.callbacks import DynamicPrecision
from deepseek_hpf.optimizers.kept_run import FILE

pytestmark = pytest.mark.slow_with("jax")

HIGH = (2, 0)

WITHOUT_THE_PACKAGE = """
import json, sys
from pathlib import Path
sys.modules["deepseek_hpf"] = None
try:
    import deepseek_hpf
except ImportError:
    pass
else:
    raise SystemExit("the package can be imported")
import keras, numpy as np
folder = Path(sys.argv[1])
model = keras.saving.load_model(folder / "model.keras", compile=False)
outputs = model(np.load(folder / "inputs.npy"), training=False)
np.save(folder / "predicted.npy", keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32")))
dtypes = {layer.name: layer.compute_dtype for layer in model.layers}
(folder / "read.json").write_text(json.dumps(dtypes))
"""


def dynamic(made, moves):
    values = {
        "policy": "mixed_float16",
        "dynamic": {"every": 3, "sample_every": 1, "max_blocks": 2},
    }
    return DynamicPrecision(hpf.PrecisionConfig.from_dict(values), scripted(moves, made))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made, (x, y) = [], data()
    model = create_model(dropout=0.0)  # Keras's files hold no random states
    callback = dynamic(made, {2: HIGH, 12: (0, 0)})
    fit(model, x, y, callback)
    path = tmp_path_factory.mktemp("files") / "model.keras"
    model.save(path)
    return model, callback, made, (x, y, model.predict(x, verbose=0)), path


@pytest.mark.slow
def test_a_file_goes_on_where_the_run_was(saved):
    model, callback, made, (x, y, _), path = saved
    loaded = keras.saving.load_model(path)
    assert loaded.get_layer("hidden").compute_dtype == "float32"
    late = []
    again = dynamic(late, {2: HIGH, 12: (0, 0)})
    one = fit(model, x, y, callback)
    two = fit(loaded, x, y, again)
    assert bits(one.model) == bits(two.model)
    assert two.history["precision_switches"] == one.history["precision_switches"] == [2]
    windows = [
        [(t.step, t.steps, t.layers) for t in each[0].told if t.steps] for each in (made, late)
    ]
    assert windows[1] == windows[0][2:]
    assert loaded.get_layer("hidden").compute_dtype == "float16"


def test_it_loads_without_and_weights_files_have_nothing_of_it(saved, tmp_path):
    model, _, _, (x, _, predicted), path = saved
    plain = keras.saving.load_model(path, compile=False)
    np.testing.assert_allclose(plain.predict(x, verbose=0), predicted, rtol=0.02, atol=2e-3)
    with zipfile.ZipFile(path) as file:
        (name,) = [n for n in file.namelist() if n.endswith(FILE)]
        assert json.loads(file.read(name))["name"] == "scripted"
    model.save_weights(tmp_path / "model.weights.h5")
    keras.saving.load_model(path).save(tmp_path / "again.keras")  # it was not trained on
    assert keras.saving.load_model(tmp_path / "again.keras").optimizer.loaded_run["switches"] >= 1


@pytest.mark.slow
def test_it_loads_where_the_package_cannot_be_imported(saved, tmp_path):
    """In its precision at the end of the run, and so with the same predictions, bit for bit."""
    model, _, _, (x, _, _), _ = saved
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "inputs.npy", x)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    read = json.loads((tmp_path / "read.json").read_text())
    kept = {layer.name: layer.compute_dtype for layer in model.layers}
    assert read == kept
    predicted = keras.ops.convert_to_numpy(keras.ops.cast(model(x, training=False), "float32"))
    np.testing.assert_array_equal(np.load(tmp_path / "predicted.npy"), predicted)


def test_a_file_of_another_controller_starts_anew(saved, caplog):
    _, _, _, (x, y, _), path = saved
    loaded = keras.saving.load_model(path)
    fit(loaded, x, y, DynamicPrecision("mixed_float16", "static"))
    assert "The controller starts anew" in caplog.text
    assert loaded.get_layer("hidden").compute_dtype == "float16"


def test_a_file_without_a_run_has_no_asset(tmp_path):
    model = create_model()
    fit(model, *data(), hpf.callbacks.PrecisionOverrides("mixed_float16"))
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert not [name for name in file.namelist() if name.endswith(FILE)]
