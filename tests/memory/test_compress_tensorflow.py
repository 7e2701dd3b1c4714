"""Keras models under TensorFlow, compressed: bytes, gradients, training, and the way back."""

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from deepseek_hpf.memory import compress_activations  # noqa: E402
from deepseek_hpf.storage.tensor_origin_tensorflow import (  # noqa: E402
    buffer_of,
    bytes_of,
    is_of_parameters,
)

pytestmark = pytest.mark.backend("tensorflow")

RNG = np.random.default_rng()
SLOW = pytest.mark.slow


def model(**options):
    layers = [
        keras.Input((16, 16, 3)),
        keras.layers.Conv2D(16, 3, padding="same", use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(),
        keras.layers.Dropout(0.2, seed=1),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, name="head"),
    ]
    made = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile("sgd", loss, **{"jit_compile": False, **options})
    return made


def batch(size=16):
    return RNG.normal(size=(size, 16, 16, 3)).astype("float32"), RNG.integers(0, 10, size)


def step(made, x, y):
    """Loss, gradients, and the bytes kept for the backward pass in one training step."""
    before = [v.numpy() for v in made.non_trainable_variables]

    def run(x, y, seed):
        with tf.GradientTape() as tape:
            loss = made.compute_loss(x, y, made(x, training=True))
        weights = [v.value for v in made.trainable_variables]
        gradients = tape.gradient(loss, weights, seed)
        return [loss, *map(tf.convert_to_tensor, gradients)]

    seed = tf.ones(())
    traced = tf.function(run, autograph=False).get_concrete_function(
        tf.constant(x), tf.constant(y), seed
    )
    loss, *gradients = (value.numpy() for value in traced(tf.constant(x), tf.constant(y), seed))
    for variable, value in zip(made.non_trainable_variables, before, strict=True):
        variable.assign(value)
    return loss, gradients, kept_bytes(traced)


def kept_bytes(traced):
    """Bytes of what depends on no gradient and is taken by what does."""
    wanted = used(t.op for t in traced.outputs)
    late = set()
    for op in traced.graph.get_operations():
        is_seed = op is traced.inputs[2].op
        after = any(t.op in late for t in op.inputs) or late & set(op.control_inputs)
        if op in wanted and (is_seed or after):
            late.add(op)
    taken = {id(s): s for op in late for t in op.inputs if t.op not in late for s in [buffer_of(t)]}
    return sum(
        bytes_of(t)
        for t in taken.values()
        if t.op.type not in ("Const", "Placeholder") and not is_of_parameters(t)
    )


def used(operations):
    found, stack = set(), list(operations)
    while stack:
        op = stack.pop()
        if op not in found:
            found.add(op)
            stack += [t.op for t in op.inputs] + list(op.control_inputs)
    return found


def test_sparse_changes_no_bit():
    made = model()
    x, y = batch()
    expected = step(made, x, y)
    compress_activations(made, "sparse", smallest=0)
    found = step(made, x, y)
    assert found[0] == expected[0]
    assert all(map(np.array_equal, found[1], expected[1]))
    assert found[2] < 0.8 * expected[2]


@pytest.mark.parametrize(
    ("storage", "share", "error"),
    [("int8", 0.2, 0.05), pytest.param("int4", 0.12, 0.5, marks=SLOW)],
)
def test_few_bytes_and_gradients_close_to_exact_ones(storage, share, error):
    made = model()
    x, y = batch()
    expected = step(made, x, y)
    compress_activations(made, storage)
    found = step(made, x, y)
    assert found[0] == expected[0]
    assert found[2] < share * expected[2]
    for ours, exact in zip(found[1], expected[1], strict=True):
        assert np.linalg.norm(ours - exact) < error * np.linalg.norm(exact) + 1e-4


@pytest.mark.slow
def test_a_memory_goal_is_met_by_what_waits_in_the_graph():
    made = model()
    x, y = batch()
    before = step(made, x, y)[2]
    for goal in (0.6, 0.2):
        report = compress_activations(made, memory_goal=goal, batch=(x, y))
        others = before - report.bytes_before  # the loss
        assert 0 <= others < 0.1 * before
        assert report.bytes_after <= goal * report.bytes_before
        assert step(made, x, y)[2] <= report.bytes_after + others
        report.revert()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"jit_compile": True}, {"steps_per_execution": 2}, {"run_eagerly": True}],
    ids=str,
)
def test_a_compressed_model_trains_as_the_plain_one(options):
    plain, packed = model(**options), model(**options)
    packed.set_weights(plain.get_weights())
    x, y = batch(56)  # the last batch is smaller
    report = compress_activations(packed, smallest=0)
    assert len(report.compressed) == len(packed.layers)
    for made in (plain, packed):
        made.fit(x, y, batch_size=16, verbose=0, shuffle=False)
    for ours, theirs in zip(packed.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.02)
    np.testing.assert_allclose(packed.predict(x, verbose=0), plain.predict(x, verbose=0), atol=0.2)


@pytest.mark.slow
def test_a_saved_model_knows_nothing_of_it_and_it_goes_back(tmp_path):
    made = model()
    x, y = batch()
    report = compress_activations(made)
    made.fit(x, y, verbose=0)
    made.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not any("call" in vars(layer) for layer in loaded.layers)
    report.revert()
    assert not any("call" in vars(layer) for layer in made.layers)
    made.fit(x, y, verbose=0)
    np.testing.assert_allclose(loaded.predict(x[:1], verbose=0).shape, (1, 10))


@pytest.mark.slow
def test_masks_shared_layers_and_sequences():
    words = keras.Input((12,), dtype="int32")
    shared = keras.layers.Dense(32, activation="gelu")
    x = keras.layers.Embedding(20, 32, mask_zero=True)(words)
    x = keras.layers.MultiHeadAttention(2, 16)(x, x)
    x = keras.layers.LayerNormalization()(shared(shared(x)))
    x = keras.layers.GlobalAveragePooling1D()(x)
    made = keras.Model(words, keras.layers.Dense(10)(x))
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = RNG.integers(0, 20, (16, 12)), RNG.integers(0, 10, 16)
    expected = step(made, x, y)
    compress_activations(made, smallest=0)
    found = step(made, x, y)
    assert found[0] == expected[0]
    for ours, exact in zip(found[1], expected[1], strict=True):
        assert np.linalg.norm(ours - exact) < 0.1 * np.linalg.norm(exact) + 1e-4
