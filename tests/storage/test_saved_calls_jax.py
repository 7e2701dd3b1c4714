"""Layers under JAX: what their derivatives keep, and the gradients that come of it."""

import keras
import numpy as np
import pytest

from deepseek_hpf.storage.stored_call import Settings

jax = pytest.importorskip("jax")

pytestmark = pytest.mark.backend("jax")

RNG = np.random.default_rng()
BITS = [("int8", 8), ("int4", 4)]


def wrapped(layer, storage, smallest=0, **options):
    from deepseek_hpf.storage.saved_calls_jax import wrap

    layer.call = wrap(layer, layer.call, Settings(storage, 0, smallest, **options))
    return layer


def model_of(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def function_of(model, x, upstream):
    """A function of the model's variables, with their new values next to it."""

    def function(trainable, others):
        out, updated = model.stateless_call(trainable, others, x, training=True)
        return (out.astype("float32") * upstream).sum(), updated

    trainable = [v.value for v in model.trainable_variables]
    return function, trainable, [v.value for v in model.non_trainable_variables]


def gradients(model, x, upstream):
    """The value and its gradients, and the new values of variables."""
    function, *state = function_of(model, x, upstream)
    (value, updated), found = jax.jit(jax.value_and_grad(function, has_aux=True))(*state)
    return np.asarray(value), [np.asarray(a) for a in found], [np.asarray(a) for a in updated]


def kept(model, x, upstream):
    """Shapes and dtypes of what is kept, parameters left out."""
    function, trainable, others = function_of(model, x, upstream)

    def residuals(trainable, others):
        return jax.tree.leaves(jax.vjp(lambda t: function(t, others)[0], trainable)[1])

    jaxpr = jax.make_jaxpr(residuals)(trainable, others).jaxpr
    known = {*jaxpr.invars, *jaxpr.constvars}
    return [v.aval for v in {v for v in jaxpr.outvars if not hasattr(v, "val")} - known]


def size_of(found):
    return sum(a.size * a.dtype.itemsize for a in found)


def block():
    return model_of(
        (64,),
        keras.layers.Dense(32, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Dropout(0.3, seed=3),
        keras.layers.Dense(8),
    )


def test_exact_storage_changes_no_bit_nor_what_layers_leave_behind():
    model, x = block(), RNG.normal(size=(64, 64)).astype("float32")
    upstream = RNG.normal(size=(64, 8)).astype("float32")
    value, expected, updated = gradients(model, x, upstream)
    plain = size_of(kept(model, x, upstream))
    for layer in model.layers:
        wrapped(layer, "sparse")
    packed_value, found, packed_updated = gradients(model, x, upstream)
    assert packed_value == value
    assert all(map(np.array_equal, found, expected))
    assert all(map(np.array_equal, packed_updated, updated))
    assert size_of(kept(model, x, upstream)) < 0.8 * plain


@pytest.mark.parametrize(("storage", "bits"), BITS)
def test_gradient_of_a_product_is_within_the_step(storage, bits):
    model = model_of((128,), wrapped(keras.layers.Dense(32, use_bias=False), storage))
    x = RNG.normal(size=(64, 128)).astype("float32")
    upstream = RNG.normal(size=(64, 32)).astype("float32")
    _, (found,), _ = gradients(model, x, upstream)
    error = found - x.astype("float64").T @ upstream
    rows = x.astype("float64").reshape(-1, 256)
    step = (rows.max(1) - rows.min(1)).max() / (2**bits - 2)
    bound = step * np.abs(upstream.astype("float64")).sum(0) * (1 + 1e-3)
    assert (np.abs(error) <= bound).all()
    assert np.abs(error).max() > 0


def test_gradient_is_unbiased():
    """Groups that hold the same values are rounded by noise of their own."""
    row, groups = RNG.normal(size=256).astype("float32"), 400
    model = model_of((256,), wrapped(keras.layers.Dense(1, use_bias=False), "int4"))
    ones = np.ones((groups, 1), "float32")
    _, (found,), _ = gradients(model, np.tile(row, (groups, 1)), ones)
    deviation = 0.5 * (row.max() - row.min()) / 14 / np.sqrt(groups)
    assert (np.abs(np.asarray(found)[:, 0] / groups - row) < 6 * deviation).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_activations_reach_the_gradient(value):
    model = model_of((64,), wrapped(keras.layers.Dense(4, use_bias=False), "int8"))
    x = RNG.normal(size=(16, 64)).astype("float32")
    x[3, 5] = value
    _, (found,), _ = gradients(model, x, np.ones((16, 4), "float32"))
    finite = np.isfinite(np.asarray(found)).all(1)
    assert not finite[5]
    assert finite[np.arange(64) != 5].all()


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_parameters_and_their_casts_are_left(dtype):
    layer = wrapped(keras.layers.Dense(48, use_bias=False, dtype=dtype), "int8")
    x = RNG.normal(size=(16, 64)).astype("float32")
    hidden = keras.layers.Dense(64, use_bias=False)
    found = kept(model_of((64,), hidden, layer), x, np.ones((16, 48), "float32"))
    low = [a for a in found if a.dtype.itemsize == 2]
    assert [a.shape for a in low] == [(64, 48)]
    assert [a.shape for a in found if a.dtype == "uint8"] == [(4, 256)]


def test_masks_take_a_bit():
    x = RNG.normal(size=(64, 64)).astype("float32")
    masking = [keras.layers.ReLU(), keras.layers.Dropout(0.5, seed=1)]
    layers = [wrapped(layer, "sparse") for layer in masking]
    model = model_of((64,), keras.layers.Dense(64, use_bias=False), *layers)
    found = kept(model, x, np.ones((64, 64), "float32"))
    assert [size_of([a]) for a in found if a.dtype == "uint8"] == [512, 512]
    assert not any(a.dtype == bool for a in found if a.size > 1)


def test_what_two_layers_keep_is_packed_once():
    x = RNG.normal(size=(64, 64)).astype("float32")
    inputs = keras.Input((64,))
    twins = [keras.layers.Dense(8, use_bias=False) for _ in range(2)]
    hidden = keras.layers.Dense(64, use_bias=False)(inputs)
    model = keras.Model(inputs, sum(twin(hidden) for twin in twins))
    known = {}
    for twin in twins:
        wrapped(twin, "int8", known=known)
    found = kept(model, x, np.ones((64, 8), "float32"))
    assert [a.shape for a in found if a.dtype == "uint8"] == [(16, 256)]


def test_batch_normalisation_keeps_its_input_only():
    layer = wrapped(keras.layers.BatchNormalization(), "int8")
    model = model_of((64,), keras.layers.Dense(64, use_bias=False), layer)
    x = RNG.normal(size=(64, 64)).astype("float32")
    found = kept(model, x, np.ones((64, 64), "float32"))
    assert [a.shape for a in found if a.dtype == "uint8"] == [(16, 256)]
    assert all(a.size <= 64 for a in found if a.dtype == "float32" and a.shape != (64, 64))


def test_max_pooling_compares_exact_values():
    layer = wrapped(keras.layers.MaxPooling1D(2), "int4")
    x = RNG.normal(size=(8, 64, 8)).astype("float32")
    weights = RNG.normal(size=(8, 32, 8)).astype("float32")

    def of(layer):
        return jax.grad(lambda x: (layer(x, training=True) * weights).sum())(x)

    assert np.array_equal(of(layer), of(keras.layers.MaxPooling1D(2)))


def test_inference_is_untouched():
    layer, x = keras.layers.Dense(8), np.ones((4, 64), "float32")
    layer.build(x.shape)
    plain = str(jax.make_jaxpr(lambda x: layer(x, training=False))(x))
    wrapped(layer, "int8")
    assert str(jax.make_jaxpr(lambda x: layer(x, training=False))(x)) == plain
    assert str(jax.make_jaxpr(lambda x: layer(x, training=True))(x)) != plain


class Penalised(keras.layers.Layer):
    """Adds a loss, and passes on a mask that it has been given."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4, use_bias=False)
        self.supports_masking = True

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, mask=None):
        self.add_loss(keras.ops.mean(x * x))
        return self.dense(x) * keras.ops.cast(mask[..., None], "float32")


def test_losses_and_masks_pass():
    model = keras.Sequential([keras.Input((6, 8)), keras.layers.Masking(), Penalised()])
    x = RNG.normal(size=(4, 6, 8)).astype("float32")
    x[:, 3:] = 0.0

    def of_model(trainable):
        out, _, losses = model.stateless_call(trainable, [], x, training=True, return_losses=True)
        return keras.ops.sum(out) + sum(losses), losses

    trainable = [v.value for v in model.trainable_variables]
    (value, losses), expected = jax.jit(jax.value_and_grad(of_model, has_aux=True))(trainable)
    for layer in [*model.layers, model.layers[-1].dense]:
        wrapped(layer, "sparse")
    (packed_value, packed_losses), found = jax.jit(jax.value_and_grad(of_model, has_aux=True))(
        trainable
    )
    assert len(losses) == len(packed_losses) == 1
    assert np.isclose(packed_value, value, rtol=1e-6)
    assert np.allclose(found[0], expected[0], rtol=1e-6)


def test_a_call_with_effects_is_left():
    class Printing(keras.layers.Layer):
        def call(self, x):
            jax.debug.print("x")
            return 2.0 * x

    layer = wrapped(Printing(), "int8")
    assert np.array_equal(
        jax.grad(lambda x: layer(x, training=True).sum())(np.ones(3)), 2 * np.ones(3)
    )
