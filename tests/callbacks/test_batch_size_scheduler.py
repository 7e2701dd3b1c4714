"""The batch grows between epochs of `fit`, the learning rate with it, on every back end."""

import keras
import numpy as np
import pytest

from deepseek_hpf.callbacks import BatchSizeScheduler, PrecisionOverrides, batch_size_scheduler
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.memory import RemadeBatches, ResizableBatches

RNG = np.random.default_rng()


def data(rows=24):
    return RNG.normal(size=(rows, 4)).astype("float32"), RNG.normal(size=(rows, 1))


def made(optimizer=None):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.SGD(0.01), "mse")
    return model


class Seen(keras.callbacks.Callback):
    """Counts the steps of each epoch."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_epoch_begin(self, epoch, logs=None):
        self.steps.append(0)

    def on_train_batch_begin(self, batch, logs=None):
        self.steps[-1] += 1


def rate(model):
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


@pytest.mark.parametrize(
    ("rule", "expected"), [("linear", 0.04), ("sqrt", 0.02), (None, 0.01)], ids=str
)
def test_the_batch_grows_and_the_learning_rate_with_it(rule, expected):
    model, seen = made(), Seen()
    batches = ResizableBatches(*data(), batch_size=3)
    grow = BatchSizeScheduler(batches, every=2, memory=None, learning_rate=rule)
    history = model.fit(batches, epochs=6, verbose=0, callbacks=[grow, seen])
    assert history.history["batch_size"] == [3, 3, 6, 6, 12, 12]
    assert seen.steps == [8, 8, 4, 4, 2, 2]
    assert rate(model) == pytest.approx(expected, rel=1e-6)
    assert int(model.optimizer.iterations) == sum(seen.steps)


def test_every_row_is_seen_once_in_each_epoch():
    x = np.arange(10, dtype="float32")[:, None]
    batches = ResizableBatches(x, x, batch_size=4)
    orders = []
    for size in (4, 4, 8):
        batches.batch_size = size
        batches.on_epoch_begin()
        rows = [batches[i][0] for i in range(batches.num_batches)]
        assert len(rows[0]) == size
        orders.append(np.concatenate(rows)[:, 0].tolist())
        assert sorted(orders[-1]) == list(range(10))
    again = ResizableBatches(x, x, batch_size=2)
    again.epoch = 2
    again.on_epoch_begin()
    found = np.concatenate([again[i][0] for i in range(again.num_batches)])[:, 0].tolist()
    assert found == orders[2]


def test_the_ceiling_is_kept_and_the_last_batch_is_shorter():
    model, seen = made(), Seen()
    batches = ResizableBatches(*data(20), batch_size=4)
    grow = BatchSizeScheduler(batches, factor=3, ceiling=13, memory=None)
    history = model.fit(batches, epochs=4, verbose=0, callbacks=[seen, grow])
    assert history.history["batch_size"] == [4, 12, 13, 13]
    assert seen.steps == [5, 2, 2, 2]
    assert rate(model) == pytest.approx(0.01 * 13 / 4, rel=1e-6)


def test_a_later_epoch_begins_with_its_size_and_the_optimizers_rate():
    model = made()
    batches = ResizableBatches(*data(), batch_size=3)
    grow = BatchSizeScheduler(batches, every=2, memory=None)
    history = model.fit(batches, initial_epoch=4, epochs=5, verbose=0, callbacks=[grow])
    assert history.history["batch_size"] == [12]
    assert rate(model) == pytest.approx(0.01, rel=1e-6)


def test_a_pipeline_is_made_anew():
    x, y = data()
    sizes = []

    def make(size):
        sizes.append(size)
        return ((x[i : i + size], y[i : i + size]) for i in range(0, len(x), size))

    model, seen = made(), Seen()
    batches = RemadeBatches(make, rows=len(x), batch_size=4)
    grow = BatchSizeScheduler(batches, memory=None)
    model.fit(batches, epochs=3, verbose=0, callbacks=[grow, seen])
    assert seen.steps == [6, 3, 2]
    assert set(sizes) == {4, 8, 16}
    assert len(sizes) <= 5  # once an epoch, and TensorFlow looks at some batches before
    short = RemadeBatches(make, rows=48, batch_size=12)
    with pytest.raises(ConfigError, match="Expected 4 batches of 12, as of 48 rows"):
        [short[i] for i in range(4)]


def test_it_grows_as_memory_allows(monkeypatch, caplog):
    needed = {4: 1000, 8: 1800, 16: 4000}
    asked = []

    class Estimate:
        def __init__(self, rows):
            asked.append(rows)
            self.total = needed[rows]

    class Device:
        name, memory_free = "made up", 1000

    monkeypatch.setattr(
        batch_size_scheduler, "estimate", lambda model, rows, sample: Estimate(rows)
    )
    monkeypatch.setattr(batch_size_scheduler.hardware, "preferred_device", lambda usable: Device())
    model = made()
    batches = ResizableBatches(*data(32), batch_size=4)
    grow = BatchSizeScheduler(batches, memory=0.9)
    history = model.fit(batches, epochs=4, verbose=0, callbacks=[grow])
    assert history.history["batch_size"] == [4, 8, 8, 8]
    assert asked == [8, 4, 16]
    assert "stays at 8 rows: 16 would need 2.1 KiB more" in caplog.text
    assert rate(model) == pytest.approx(0.02, rel=1e-6)


def test_the_estimate_is_asked_in_the_middle_of_fit_and_changes_nothing():
    x, y = data(16)
    weights = made().get_weights()
    results = []
    for memory in (0.9, None):
        model = made(keras.optimizers.Adam(0.01))
        model.set_weights(weights)
        batches = ResizableBatches(x, y, batch_size=4)
        grow = BatchSizeScheduler(batches, memory=memory)
        callbacks = [PrecisionOverrides("float32"), grow]
        model.fit(batches, epochs=2, verbose=0, callbacks=callbacks, shuffle=False)
        assert batches.batch_size == 8
        results.append(model.get_weights())
    assert all(map(np.array_equal, *results))


def test_arrays_given_to_fit_are_refused_with_the_way_out():
    x, y = data()
    grow = BatchSizeScheduler(ResizableBatches(x, y, batch_size=4), memory=None)
    with pytest.raises(ConfigError, match="ResizableBatches\\(x, y"):
        made().fit(x, y, epochs=2, verbose=0, callbacks=[grow])


def test_a_schedule_of_the_optimizers_own_is_refused():
    batches = ResizableBatches(*data(), batch_size=4)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model = made(keras.optimizers.SGD(schedule))
    with pytest.raises(ConfigError, match="ExponentialDecay"):
        model.fit(batches, verbose=0, callbacks=[BatchSizeScheduler(batches, memory=None)])
    grow = BatchSizeScheduler(batches, memory=None, learning_rate=None)
    model.fit(batches, epochs=2, verbose=0, callbacks=[grow])
    assert batches.batch_size == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every"),
        ({"factor": 1}, "factor"),
        ({"factor": 1.5}, "factor"),
        ({"ceiling": 0}, "ceiling"),
        ({"memory": 1.5}, "memory"),
        ({"memory": 0}, "memory"),
        ({"learning_rate": "cubic"}, "learning_rate"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        BatchSizeScheduler(ResizableBatches(*data(), batch_size=4), **options)


def test_bad_batches():
    x, y = data()
    with pytest.raises(ConfigError, match="ResizableBatches, made of arrays"):
        BatchSizeScheduler((x, y))
    with pytest.raises(ConfigError, match="same number of rows"):
        ResizableBatches(x, y[:3], batch_size=4)
    with pytest.raises(ConfigError, match="batch_size"):
        ResizableBatches(x, y, batch_size=0)
