"""The census: FLOPs, casts and dtypes of a step against counts made by hand; nothing changes."""

import keras
import numpy as np
import pytest

from deepseek_hpf.adapters.adjoining_step import standing_in
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.profiler.census import take_census

BACKEND = keras.backend.backend()
PRODUCTS = {
    "tensorflow": ("MatMul", "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"),
    "jax": ("dot_general", "conv_general_dilated"),
    "torch": ("mm", "addmm", "convolution", "convolution_backward"),
}[BACKEND]


def model_of(*layers, policy="float32", shape=(8,), **compiled):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential([keras.Input(shape), *(make() for make in layers)])
    finally:
        keras.config.set_dtype_policy(before)
    model.compile(**{"optimizer": "sgd", "loss": "mse", **compiled})
    return model


def batch_for(model, rows=4):
    rng = np.random.default_rng()
    shapes = ((rows, *model.input_shape[1:]), (rows, *model.output_shape[1:]))
    return tuple(rng.normal(size=shape).astype("float32") for shape in shapes)


def product_flops(census, dtype=None):
    rows = [row for row in census.operations if row.name in PRODUCTS]
    return sum(row.flops for row in rows if dtype in (None, row.dtype))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_products_are_counted_in_their_dtype(policy):
    def dense(n):
        return lambda: keras.layers.Dense(n)

    model = model_of(dense(16), dense(3), policy=policy)
    census = take_census(model, batch_for(model, 4), measure=False)
    forward = 2 * 4 * 8 * 16 + 2 * 4 * 16 * 3
    # Backward: the kernels' gradients as much again, the input's only for the second layer.
    expected = 2 * forward + 2 * 4 * 16 * 3
    assert product_flops(census) == expected
    computed = policy.removeprefix("mixed_")
    if (BACKEND, computed) == ("torch", "float16"):  # Keras multiplies in float32 on a CPU there
        computed = "float32"
    assert product_flops(census, computed) == expected


def test_a_convolution_has_the_flops_of_its_windows():
    model = model_of(
        lambda: keras.layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False),
        lambda: keras.layers.Conv2D(6, 3, use_bias=False),
        keras.layers.Flatten,
        shape=(8, 8, 3),
    )
    census = take_census(model, batch_for(model, 2), measure=False)
    first = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
    second = 2 * (2 * 2 * 2 * 6) * (3 * 3 * 5)
    if BACKEND == "jax":  # its gradients are convolutions over padded arrays
        assert 2 * first + 3 * second <= product_flops(census) <= 2 * (2 * first + 3 * second)
    else:
        assert product_flops(census) == 2 * first + 3 * second


def test_casts_of_a_dense_layer_are_counted_by_hand():
    """Input, kernel and bias down; their gradients up; the loss casts the output up and back."""
    model = model_of(lambda: keras.layers.Dense(3), policy="mixed_bfloat16")
    census = take_census(model, batch_for(model), measure=False)
    down = sum(r.count for r in census.casts if (r.source, r.target) == ("float32", "bfloat16"))
    up = sum(r.count for r in census.casts if (r.source, r.target) == ("bfloat16", "float32"))
    assert down >= 3
    assert up >= 2
    assert census.cast_count == up + down
    plain = model_of(lambda: keras.layers.Dense(3))
    assert take_census(plain, batch_for(plain), measure=False).cast_count == 0


def test_a_loop_counts_as_often_as_it_runs():
    def recurrent(steps):
        model = model_of(lambda: keras.layers.SimpleRNN(6, use_bias=False), shape=(steps, 4))
        return product_flops(take_census(model, batch_for(model), measure=False))

    assert recurrent(12) == pytest.approx(2 * recurrent(6), rel=0.2)


def everything(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [keras.ops.convert_to_numpy(variable.value) for variable in variables]


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("measure", [False, True])
def test_the_model_is_left_as_it_was(trained, measure):
    model = model_of(
        lambda: keras.layers.Dense(8),
        keras.layers.BatchNormalization,
        lambda: keras.layers.Dropout(0.5, seed=3),
        lambda: keras.layers.Dense(2),
        policy="mixed_float16",
        optimizer="adam",
        metrics=["mae"],
    )
    batch = batch_for(model)
    if trained:
        model.fit(*batch, verbose=0)
    before, function, optimizer = everything(model), model.train_function, model.optimizer
    parts = {
        name: getattr(model, name)
        for name in ("_compile_loss", "_compile_metrics", "_loss_tracker")
    }
    built = [getattr(part, "built", None) for part in (optimizer, *parts.values())]
    census = take_census(model, batch, measure=measure)
    assert sum(row.flops for row in census.operations) > 0
    assert model.optimizer is optimizer
    assert model.train_function is function
    assert [getattr(part, "built", None) for part in (optimizer, *parts.values())] == built
    assert all(getattr(model, name) is part for name, part in parts.items())
    for value, now in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(value, now)
    model.fit(*batch, verbose=0)


def test_operations_are_timed():
    model = model_of(lambda: keras.layers.Dense(64), policy="mixed_bfloat16", shape=(128,))
    census = take_census(model, batch_for(model, 64))
    assert sum(row.seconds or 0 for row in census.operations if row.name in PRODUCTS) > 0
    if BACKEND != "jax":  # there a cast may be fused into what uses it
        assert all(row.seconds > 0 for row in census.casts)
    if BACKEND != "torch":
        untimed = take_census(model, batch_for(model), measure=False)
        assert {row.seconds for row in (*untimed.operations, *untimed.casts)} == {None}


@pytest.mark.backend("jax")
def test_a_profile_that_is_being_taken_is_left_alone(tmp_path):
    import jax

    model = model_of(lambda: keras.layers.Dense(2))
    with jax.profiler.trace(str(tmp_path)):
        census = take_census(model, batch_for(model))
    assert {row.seconds for row in census.operations} == {None}
    assert "No times" in census.notes[0]
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.backend("tensorflow")
def test_a_model_compiled_with_xla_is_counted_too():
    plain = model_of(lambda: keras.layers.Dense(4), policy="mixed_bfloat16")
    xla = model_of(lambda: keras.layers.Dense(4), policy="mixed_bfloat16", jit_compile=True)
    counts = [take_census(m, batch_for(m), measure=False).cast_count for m in (plain, xla)]
    assert counts[0] == counts[1] > 0


def test_a_fault_leaves_nothing_behind():
    class Fails(keras.layers.Layer):
        broken = False

        def call(self, x):
            if self.broken:
                raise RuntimeError("broken on purpose")
            return x

    model = model_of(lambda: keras.layers.Dense(2), Fails, optimizer="adam")
    model.layers[-1].broken = True
    before, optimizer = everything(model), model.optimizer
    with pytest.raises(ConfigError, match="broken on purpose"):
        take_census(model, batch_for(model))
    assert model.optimizer is optimizer
    assert not optimizer.built
    for value, now in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(value, now)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (None, r"expected a batch \(x, y\)"),
        (np.ones((4, 8)), r"expected a batch \(x, y\)"),
        ((np.ones((4, 9)), np.ones((4, 2))), "cannot make a training step"),
    ],
)
def test_a_batch_that_does_not_fit_is_one_error(batch, words):
    with pytest.raises(ConfigError, match=words):
        take_census(model_of(lambda: keras.layers.Dense(2)), batch)


def test_a_model_that_cannot_train_yet_says_so():
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(ConfigError, match="not built"):
        take_census(unbuilt, (np.ones((1, 1)), np.ones((1, 1))))
    uncompiled = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    with pytest.raises(ConfigError, match="not compiled"):
        take_census(uncompiled, (np.ones((1, 1)), np.ones((1, 1))))


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_resnet_50_casts_433_times_a_step(global_dtype_policy):
    """As counted by hand in the graph of plain Keras's `mixed_bfloat16`, the loss left out.

    54 kernels and 54 biases down and their gradients up (216); 53 batch normalisations up and down,
    forward and backward (212); the pooling likewise (4); the images (1). The loss casts the
    model's output up, and its gradient down: 2 more.
    """
    from deepseek_hpf.profiler.census_tensorflow import trace_step

    keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
    model.compile("sgd", "sparse_categorical_crossentropy")
    images, labels = np.zeros((2, 32, 32, 3), "float32"), np.zeros((2,), "int32")
    with standing_in(model):
        batch = tuple(keras.ops.convert_to_tensor(part) for part in (images, labels))
        operations, _ = trace_step(model, batch, False)
    floats = {"float32", "bfloat16"}
    casts = [
        operation.place
        for operation in operations
        if operation.is_cast and {operation.inputs[0].dtype, operation.outputs[0].dtype} == floats
    ]
    in_the_loss = [place for place in casts if "compile_loss/" in place]
    assert (len(casts) - len(in_the_loss), len(in_the_loss)) == (433, 2)
    assert take_census(model, (images, labels), measure=False).cast_count == 435
