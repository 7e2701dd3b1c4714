"""The last step of an epoch, which is looked at when the epoch is over, and maybe an evaluation."""

import keras
import numpy as np
import pytest
from keras import ops
from test_planted_faults import BATCH, Fragile, config, create_model, data, events_of, fit, of_kind

from deepseek_hpf.callbacks import DynamicPrecision
from deepseek_hpf.dynamic.attribution import attribute

pytestmark = pytest.mark.slow_with("jax")

slow = pytest.mark.slow


def told(model, x, y, **options):
    callback = DynamicPrecision(config(controller="static"))
    events = of_kind(events_of(fit(model, x, y, callback, **options)), "overflow")
    return [(e["step"], e["cause"], e.get("layer"), tuple(e.get("samples", ()))) for e in events]


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [2, pytest.param(0, marks=slow), pytest.param(3, marks=slow)])
def test_it_is_looked_into_like_any_other(left_out):
    x, y = data(steps=4, fault=3)
    rows = len(x) - left_out  # so that the last batch is short
    found = told(
        create_model(Fragile(name="fragile")), x[:rows], y[:rows], validation_data=(x[:4], y[:4])
    )
    assert found == [(3, "activation", "fragile", ())]


def test_bad_data_in_the_last_batch_of_two_epochs():
    x, y = data(steps=4)
    x[3 * BATCH + 1] = np.nan
    found = told(create_model(Fragile(name="fragile")), x[:-2], y[:-2], epochs=2)
    assert found == [(3, "data", None, (1,)), (7, "data", None, (1,))]


@slow
def test_epochs_of_one_short_batch():
    x, y = data(steps=1, fault=0)
    model = create_model(Fragile(name="fragile"))
    found = told(model, x[:3], y[:3], epochs=2)
    assert found == [(step, "activation", "fragile", ()) for step in (0, 1)]


class Moody(keras.layers.Layer):
    """Asks PyTorch in which mode it is, and overflows in training only."""

    def call(self, x):
        return x * 3e4 * 3e4 if self.training else x * 1.0


class Holding(keras.Model):
    """A subclassed model, whose layers PyTorch knows of."""

    def __init__(self):
        super().__init__()
        self.moody = Moody(name="moody")
        self.head = keras.layers.Dense(1, dtype="float32", name="head")

    def call(self, x):
        return self.head(self.moody(x))


@pytest.mark.backend("torch")
def test_a_layer_that_asks_pytorch_in_which_mode_it_is():
    """Keras has switched it to evaluation when the epoch ends; the step ran in training."""
    x, y = data(steps=1)
    model = Holding()
    model.compile("sgd", "mse")
    assert told(model, x, y) == [(0, "activation", "moody", ())]
    batch = (ops.convert_to_tensor(x), ops.convert_to_tensor(y))
    for mode in (False, True):
        model.train(mode)
        model.head.eval()
        modes = [module.training for module in model.modules()]
        assert attribute(model, batch, step=1, scale=1.0).layer == "moody"
        assert [module.training for module in model.modules()] == modes
