"""`data.prefetch`: the same batches in the same order, cast, in `fit` and in loops of one's own."""

import re

import keras
import numpy as np
import pytest

import deepseek_hpf as hpf
from deepseek_hpf.data.batches import ArrayBatches

COUNT, BATCH = 10, 4


def arrays(seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(COUNT, 3)).astype("float32"), random.integers(0, 2, COUNT)


class Batches(keras.utils.PyDataset):
    """Batches with sample weights, that fail at one of them if asked."""

    def __init__(self, fails_at=None, **kwargs):
        super().__init__(**kwargs)
        self.fails_at = fails_at
        self.asked, self.epochs = [], []

    def __len__(self):
        return -(-COUNT // BATCH)

    def __getitem__(self, index):
        self.asked.append((len(self.epochs), index))
        if index == self.fails_at:
            raise OSError("image 7 is damaged")
        rows = slice(index * BATCH, (index + 1) * BATCH)
        x, y = arrays()
        return {"a": x[rows], "b": np.arange(COUNT)[rows]}, y[rows], x[rows, 0].astype("float32")

    def on_epoch_end(self):
        self.epochs.append(list(self.asked))


def as_numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")))


def name_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


@pytest.mark.parametrize("policy", [None, "float32", "mixed_bfloat16", "mixed_float16"])
def test_the_same_batches_with_their_inputs_cast(policy):
    dtype = {None: "float32", "float32": "float32"}.get(policy, (policy or "")[6:])
    plain = Batches()
    ahead = hpf.data.prefetch(Batches(), policy)
    assert len(ahead) == len(plain) == ahead.num_batches
    for _ in range(2):
        batches = list(ahead)
        assert len(batches) == 3
        for index, (inputs, y, weights) in enumerate(batches):
            wanted, *rest = plain[index]
            assert name_of(inputs["a"]) == dtype
            assert name_of(inputs["b"]) in ("int64", "int32")
            assert name_of(weights) == "float32"
            rounded = as_numpy(keras.ops.cast(keras.ops.convert_to_tensor(wanted["a"]), dtype))
            np.testing.assert_array_equal(as_numpy(inputs["a"]), rounded)
            np.testing.assert_array_equal(as_numpy(inputs["b"]), wanted["b"])
            for found, other in zip((y, weights), rest, strict=True):
                np.testing.assert_array_equal(as_numpy(found), other)


def test_subnormals_infinities_and_nan_are_cast_as_the_model_would():
    values = np.array([[0, -0.0, 1e-40, 6e-8, 65519, 65520, np.inf, -np.inf, np.nan, 1e38]], "f4")

    def one():
        yield (values,)

    for dtype in ("float16", "bfloat16", "float64"):
        with np.errstate(over="ignore"):
            ((found,),) = [tuple(batch) for batch in hpf.data.prefetch(one(), dtype=dtype)]
        if keras.backend.backend() == "jax" and dtype == "float64":
            assert found.dtype == np.float64  # a NumPy array until JAX takes it
            continue
        assert name_of(found) == dtype
        wanted = keras.ops.cast(keras.ops.convert_to_tensor(values), dtype)
        flushed = np.abs(values) < 1e-37  # the back ends differ in these
        np.testing.assert_array_equal(as_numpy(found)[~flushed], as_numpy(wanted)[~flushed])
        assert (np.abs(as_numpy(found)[flushed]) < 1e-37).all()


def test_empty_batches_and_single_rows():
    def rows():
        yield np.zeros((1, 2), "float32"), np.zeros(1)
        yield np.zeros((0, 2), "float32"), np.zeros(0)

    shapes = [tuple(x.shape) for x, _ in hpf.data.prefetch(rows(), "mixed_bfloat16")]
    assert shapes == [(1, 2), (0, 2)]


def test_an_array_that_the_pipeline_writes_again_is_not_seen_changed():
    def counting():
        buffer = np.zeros((2, 1), "float32")
        for number in range(5):
            buffer[:] = number
            yield buffer, buffer[:, 0]

    found = [float(as_numpy(x)[0, 0]) for x, _ in hpf.data.prefetch(counting(), depth=3)]
    # Keras itself keeps the first two batches as they are, and by then the second is written.
    assert found[2:] == [2, 3, 4]


def test_rules_that_keep_layers_wide_leave_the_inputs_as_they_are():
    wide = {"policy": "mixed_bfloat16", "rules": [{"layers": "in*", "policy": "float32"}]}
    alike = {"policy": "mixed_bfloat16", "rules": [{"layers": "in*", "policy": "bfloat16"}]}
    for config, dtype in ((wide, "float32"), (alike, "bfloat16")):
        policy = hpf.MixedPrecisionPolicy(config=config)
        inputs = next(iter(hpf.data.prefetch(Batches(), policy)))[0]
        assert name_of(inputs["a"]) == dtype


def train(data, policy, epochs=3):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype=policy)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    history = model.fit(data, epochs=epochs, verbose=0, shuffle=False).history
    model.evaluate(data, verbose=0)
    return history, model.get_weights(), model.predict(data, verbose=0)


def own_batches():
    return ArrayBatches(arrays(), BATCH, shuffle=True, seed=3)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_training_ends_with_the_same_bits(policy):
    plain = train(own_batches(), policy)
    ahead = train(hpf.data.prefetch(own_batches(), policy, depth=3), policy)
    assert plain[0] == ahead[0]
    for one, other in zip([*plain[1], plain[2]], [*ahead[1], ahead[2]], strict=True):
        np.testing.assert_array_equal(one, other)


def test_steps_per_epoch_go_on_where_the_epoch_before_ended():
    def labels(data):
        seen = []

        class See(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                seen.append(float(logs["loss"]))

        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(data, epochs=3, steps_per_epoch=2, verbose=0, callbacks=[See()])
        return seen

    def numbers():
        for number in range(6):
            yield np.full((2, 1), number, "float32"), np.full((2, 1), number, "float32")

    assert labels(hpf.data.prefetch(numbers())) == labels(numbers())


def test_the_data_is_told_of_an_epochs_end_when_nothing_is_read_any_more():
    def record(prefetched):
        data = Batches()
        inputs = keras.Input((3,), name="a"), keras.Input((), name="b")
        model = keras.Model(inputs, keras.layers.Dense(1)(inputs[0]))
        model.compile("sgd", "mse")
        given = hpf.data.prefetch(data, depth=1) if prefetched else data
        data.asked.clear()
        model.fit(given, epochs=2, verbose=0, shuffle=False)
        last = len(data.epochs) - 1
        return len(data.epochs), [index for epoch, index in data.asked if epoch == last]

    assert record(True) == record(False)


def test_an_exception_surfaces_in_the_training_loop():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")

    def loop():
        for inputs, y, weights in hpf.data.prefetch(Batches(fails_at=2)):
            model.train_on_batch(inputs["a"], y, weights)

    with pytest.raises(Exception, match="image 7 is damaged"):
        loop()
    assert int(model.optimizer.iterations) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hpf.data.prefetch(arrays()), "data that comes in batches"),
        (lambda: hpf.data.prefetch(arrays()[0]), "data that comes in batches"),
        (lambda: hpf.data.prefetch(7), "data that comes in batches"),
        (lambda: hpf.data.prefetch(Batches(), depth=0), "depth=0"),
        (lambda: hpf.data.prefetch(Batches(), depth=True), "depth=True"),
        (lambda: hpf.data.prefetch(Batches(), dtype="int8"), "dtype='int8'"),
        (lambda: hpf.data.prefetch(Batches(), "mixed_bfloat61"), "policy='mixed_bfloat61'"),
        (lambda: hpf.data.prefetch(Batches(), 16), "policy=16"),
        (lambda: hpf.data.prefetch(hpf.data.prefetch(Batches())), "prefetched already"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(hpf.ConfigError, match=re.escape(message)):
        call()


@pytest.mark.backend("tensorflow")
def test_a_dataset_stays_one():
    import tensorflow as tf

    plain = tf.data.Dataset.from_tensor_slices(arrays()).shuffle(10, seed=2).batch(BATCH)
    ahead = hpf.data.prefetch(plain, "mixed_bfloat16")
    assert isinstance(ahead, tf.data.Dataset)
    assert int(ahead.cardinality()) == 3
    alone = hpf.data.prefetch(plain.map(lambda x, y: (x,)), "mixed_bfloat16")
    assert isinstance(alone.element_spec, tuple)
    assert alone.element_spec[0].dtype == tf.bfloat16


@pytest.mark.backend("torch")
def test_a_data_loader():
    import torch

    tensors = [torch.from_numpy(each) for each in arrays()]
    dataset = torch.utils.data.TensorDataset(*tensors)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH)
    ahead = list(hpf.data.prefetch(loader, "mixed_bfloat16"))
    assert [x.dtype for x, _ in ahead] == [torch.bfloat16] * 3
    assert torch.equal(torch.cat([y for _, y in ahead]), tensors[1])
    plain, fast = (train(d, "mixed_bfloat16") for d in (loader, hpf.data.prefetch(loader)))
    assert plain[0] == fast[0]
