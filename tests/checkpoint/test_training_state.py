"""What a run consists of is listed once, read and written back bit for bit."""

import keras
import ml_dtypes
import numpy as np
import pytest

from deepseek_hpf.checkpoint import training_state
from deepseek_hpf.checkpoint.backup_store import BackupStore
from deepseek_hpf.checkpoint.random_states import capture_random_states, restore_random_states
from deepseek_hpf.checkpoint.training_state import StateVariable
from deepseek_hpf.errors import ConfigError

SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3.3895e38, 9.2e-41, 1e-45, 6e-8, 65504.0]


def values_of(dtype):
    """Zeros of both signs, subnormals, infinities, NaN, extremes; for integers their ends."""
    if dtype == "bool":
        return np.array([True, False])
    if dtype in ("float16", "bfloat16", "float32", "float64"):
        with np.errstate(over="ignore", under="ignore"):
            return np.array(SPECIAL).astype(training_state.numpy_dtype(dtype))
    info = np.iinfo(dtype)
    return np.array([info.min, -1 % (info.max + 1), 0, 1, info.max], dtype)


DTYPES = ["float16", "bfloat16", "float32", "int8", "uint8", "int32", "bool"]
DTYPES += [] if keras.backend.backend() == "jax" else ["float64", "int64"]
DTYPES += ["uint32"] if keras.backend.backend() == "jax" else []


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_survive_the_way_to_the_disk_bit_for_bit(tmp_path, dtype):
    values = values_of(dtype)
    shapes = {"vector": values, "scalar": values[:1].reshape(()), "empty": values[:0]}
    variables = []
    for value in shapes.values():
        variable = keras.Variable(np.zeros(value.shape), dtype=dtype, trainable=False)
        variable.assign(value)
        variables.append(variable)
    read = {name: training_state.read_value(v) for name, v in zip(shapes, variables, strict=True)}
    assert {array.dtype for array in read.values()} == {values.dtype}
    store = BackupStore(tmp_path)
    backup = store.load(store.write({"epoch": 0}, read.items()))
    for (name, array), variable in zip(backup.arrays(read), variables, strict=True):
        assert array.dtype == values.dtype
        assert array.shape == shapes[name].shape
        assert array.tobytes() == read[name].tobytes()
        # PyTorch gives every bfloat16 NaN that comes from outside one sign; all else is exact.
        wide = [a.astype("float64") for a in (array, shapes[name])]
        np.testing.assert_array_equal(*wide)
        assert np.array_equal(np.signbit(wide[0]), np.signbit(wide[1])) or np.isnan(wide[0]).any()
        variable.assign(np.zeros(variable.shape))
        variable.assign(array)
        assert training_state.read_value(variable).tobytes() == array.tobytes()


def test_float8_arrays_are_stored_as_they_are(tmp_path):
    array = np.arange(256, dtype="uint8").view(ml_dtypes.float8_e4m3fn).reshape(16, 16)
    store = BackupStore(tmp_path)
    ((_, read),) = store.load(store.write({}, [("model/00000", array)])).arrays(["model/00000"])
    assert read.dtype == array.dtype
    assert read.tobytes() == array.tobytes()


def test_every_variable_of_a_run_is_listed_once():
    shared = keras.layers.Dense(3)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dropout(0.5)(shared(shared(inputs)))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(hidden))
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((2, 3)), np.ones((2, 3)), verbose=0)
    keras.random.normal((1,))  # makes the global seed generator
    listed = training_state.training_variables(model, metrics=True)
    ids = [id(entry.variable) for entry in listed]
    assert len(ids) == len(set(ids))
    assert len({entry.key for entry in listed}) == len(listed)
    expected = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    assert {id(v) for v in expected} < set(ids)
    assert sum("seed_generator_state" in e.path for e in listed if e.section == "model") == 1
    assert [e.section for e in listed][-1] == "random"
    assert not [
        e for e in training_state.training_variables(model, metrics=False) if e.section == "metrics"
    ]


def entry(path, shape=(2,), dtype="float32", section="model", index=0):
    name = path.rpartition("/")[2]
    variable = keras.Variable(np.zeros(shape), dtype=dtype, trainable=False, name=name)
    variable._path = path
    return StateVariable(section, index, variable)


def test_what_stateful_rnns_carry_is_listed():
    cells = keras.layers.StackedRNNCells([keras.layers.LSTMCell(2), keras.layers.LSTMCell(2)])
    recurrent = [
        keras.layers.GRU(3, stateful=True, return_sequences=True),
        keras.layers.RNN(cells, stateful=True),
    ]
    model = keras.Sequential([keras.Input(batch_shape=(2, 3, 4)), *recurrent])
    model(np.ones((2, 3, 4), "float32"))
    listed = training_state.training_variables(model, metrics=False)
    carried = [v for v in listed if v.section == "states"]
    assert len(carried) == 1 + 4
    known = {id(v) for layer in recurrent for v in keras.tree.flatten(layer.states)}
    assert {id(v.variable) for v in carried} == known


def test_differences_name_the_variable():
    saved = [entry("net/dense/kernel").describe()]
    assert training_state.differences(saved, [entry("net_3/dense_12/kernel")]) == []
    for found, text in [
        ([entry("net/dense/kernel", (3,))], r"\(2,\) float32, the run has .* \(3,\) float32"),
        ([entry("net/dense/kernel", dtype="float16")], r"\(2,\) float32, .* \(2,\) float16"),
        ([entry("net/other/kernel")], "'net/dense/kernel'.*'net/other/kernel'"),
        ([], "'net/dense/kernel'.* has no counterpart"),
        ([entry("net/dense/kernel"), entry("net/b", index=1)], "'net/b' .*is not in the backup"),
    ]:
        with pytest.raises(ConfigError, match=text):
            training_state.check_fit(saved, found, "here")


def test_global_generators_continue_where_they_stood():
    import random

    def draw():
        numbers = [random.random(), random.gauss(0, 1), np.random.normal(), np.random.rand()]
        if keras.backend.backend() == "torch":
            import torch

            numbers.append(float(torch.rand(())))
        return numbers

    random.gauss(0, 1)
    np.random.normal()  # both keep a second number that is due next
    states = capture_random_states()
    first = draw()
    assert draw() != first
    restore_random_states(states)
    assert draw() == first


def test_store_removes_what_a_dead_process_left(tmp_path):
    store = BackupStore(tmp_path)
    first = store.write({"epoch": 1}, [("a", np.arange(3))])
    for name in (".partial-backup-00000001", ".removed-backup-00000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.npz").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    store.clean()
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.name, "notes.txt"]
    second = store.write({"epoch": 2}, [("a", np.arange(4))])
    assert store.paths() == [second]
    assert store.load(second).manifest["epoch"] == 2
    with np.load(second / "state.npz") as readable:
        np.testing.assert_array_equal(readable["a"], np.arange(4))
    store.delete()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_write_leaves_the_backup_before_it(tmp_path):
    store = BackupStore(tmp_path)
    first = store.write({"epoch": 1}, [("a", np.arange(3))])

    def failing():
        yield "a", np.arange(3)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.write({"epoch": 2}, failing())
    assert store.paths() == [first]
    assert store.load(first).manifest["epoch"] == 1
