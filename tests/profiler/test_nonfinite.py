"""The first inf or NaN: the layer, the operation inside it, and what came before."""

import keras
import numpy as np
import pytest

from deepseek_hpf import profile

L = keras.layers
BACKEND = keras.backend.backend()
INPUTS, LABELS = np.ones((2, 3), "float32"), np.ones((2, 1), "float32")


class Breaks(L.Layer):
    def call(self, x):
        return keras.ops.log(x * 0.0) + 1.0


class MasksWithInfinity(L.Layer):
    """An infinite constant does no harm, and the logarithm behind it does."""

    def call(self, x):
        masked = keras.ops.where(keras.ops.arange(3) < 2, x, -np.inf)
        return keras.ops.log(keras.ops.softmax(masked) * 0.0)


class RootOfZero(L.Layer):
    def call(self, x):
        return keras.ops.sqrt(x * 0.0)


def found(*layers, x=INPUTS, y=LABELS):
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("sgd", "mse")
    return profile(model, (x, y), census=False).nonfinite


def test_the_first_layer_is_named_with_what_came_before():
    inputs = keras.Input((3,))
    tensor = inputs
    for index in range(25):
        tensor = L.Activation("tanh", name=f"a{index}")(tensor)
    tensor = L.Dense(2)(Breaks(name="breaks")(tensor))
    model = keras.Model(inputs, tensor)
    first = profile(model, (INPUTS,), census=False).nonfinite
    assert (first.phase, first.path, first.value) == ("forward", "breaks", "inf")
    assert (first.operation.lower(), first.reason) == ("log", "")
    assert [row.path for row in first.history] == [*(f"a{i}" for i in range(5, 25)), "breaks"]


def test_finite_steps_have_none():
    assert found(L.Dense(1)) is None


def test_a_mask_is_not_blamed():
    first = found(MasksWithInfinity(name="masks"), L.Dense(1))
    assert (first.path, first.operation.lower()) == ("masks", "log")


def test_an_infinite_gradient_is_named_after_the_layer_that_made_it():
    first = found(L.Dense(3, name="before"), RootOfZero(name="root"), L.Dense(1, name="d"))
    assert (first.phase, first.path, first.reason) == ("backward", "root", "")
    made = {"tensorflow": "SqrtGrad", "jax": "mul", "torch": "div"}
    assert first.operation == made[BACKEND]


def test_a_cast_that_overflows_is_an_operation_of_the_layer_that_asks_for_it():
    wide = L.Rescaling(1e6, dtype="float32", name="wide")
    first = found(wide, L.Activation("relu", dtype="float16", name="low"), L.Dense(1))
    made = {"tensorflow": "Cast", "jax": "convert_element_type", "torch": "_to_copy"}
    assert (first.phase, first.path, first.operation) == ("forward", "low", made[BACKEND])


def test_the_loss_is_looked_into():
    first = found(L.Dense(1), y=LABELS * 1e30)
    assert (first.phase, first.path, first.value, first.reason) == ("loss", "loss", "inf", "")
    assert first.operation in ("Square", "square", "pow")


@pytest.mark.parametrize(
    ("x", "y", "place"), [(np.nan, 1, ("forward", "d")), (1, np.nan, ("loss", "loss"))]
)
def test_of_a_batch_that_is_not_finite_no_operation_is_blamed(x, y, place):
    first = found(L.Dense(1, name="d"), x=INPUTS * np.float32(x), y=LABELS * np.float32(y))
    assert (first.phase, first.path) == place
    assert first.reason == "the batch itself is not finite"
    assert first.operation in ("Dense", "loss")


def test_nor_of_a_weight_that_is_not():
    layer = L.Dense(1, name="d")
    layer.build((None, 3))
    layer.kernel.assign(np.array([[np.inf], [1.0], [2.0]], "float32"))
    first = found(layer)
    assert (first.path, first.operation) == ("d", "Dense")
    assert first.reason == "its weight kernel is not finite"


def test_an_operation_that_is_no_layer_is_named_itself():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.ops.log(inputs * 0.0))
    first = profile(model, (INPUTS,), census=False).nonfinite
    assert (first.path, first.operation.lower()) == ("log", "log")


def test_looking_for_it_changes_nothing():
    layers = [L.Dropout(0.5, seed=1), L.Dense(3), L.BatchNormalization(), RootOfZero(), L.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("sgd", "mse")
    seeds = [g.state for layer in model.layers for g in layer._seed_generators]
    held = [vars(layer).get("call") for layer in model.layers]
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in [*model.variables, *seeds]]
    assert profile(model, (INPUTS, LABELS), census=False).nonfinite is not None
    after = [keras.ops.convert_to_numpy(v) for v in [*model.variables, *seeds]]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert [vars(layer).get("call") for layer in model.layers] == held
