"""Activations of Keras models, compressed: gradients, bytes, and the way back."""

import keras
import numpy as np
import pytest

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.memory import compress_activations

RNG = np.random.default_rng()
on_torch = pytest.mark.backend("torch")


def model():
    layers = [
        keras.Input((16, 16, 3)),
        keras.layers.Conv2D(16, 3, padding="same", use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, name="head"),
    ]
    made = keras.Sequential(layers)
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return made


def batch():
    return RNG.normal(size=(16, 16, 16, 3)).astype("float32"), RNG.integers(0, 10, 16)


def step(made, x, y):
    """Loss, gradients, and the bytes kept for the backward pass in one training step."""
    import torch

    from deepseek_hpf.storage.saved_tensors_torch import _Saved

    kept = {}
    hooks = torch.autograd.graph.saved_tensors_hooks

    class Counting(hooks):
        """Counts what the hooks return, each once."""

        def __init__(self, pack, unpack):
            def counting(tensor):
                packed = pack(tensor)
                if isinstance(packed, _Saved):
                    kept[id(packed.packed)] = (packed.packed.kept_bytes, packed)
                else:
                    kept[packed.data_ptr()] = (packed.nbytes, packed)
                return packed

            super().__init__(counting, unpack)

    torch.autograd.graph.saved_tensors_hooks = Counting
    try:
        with Counting(lambda t: t.detach(), lambda t: t):
            loss = made.compute_loss(x, y, made(x, training=True))
    finally:
        torch.autograd.graph.saved_tensors_hooks = hooks
    total = sum(size for size, _ in kept.values())
    made.zero_grad()
    loss.backward()
    gradients = [v.value.grad.numpy().copy() for v in made.trainable_variables]
    return float(loss), gradients, total


@on_torch
def test_sparse_changes_no_bit():
    made = model()
    x, y = batch()
    expected = step(made, x, y)
    compress_activations(made, "sparse", smallest=0)
    found = step(made, x, y)
    assert found[0] == expected[0]
    assert all(map(np.array_equal, found[1], expected[1]))
    assert found[2] < expected[2]


@on_torch
@pytest.mark.parametrize(("storage", "share", "error"), [("int8", 0.4, 0.05), ("int4", 0.25, 0.5)])
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


@on_torch
@pytest.mark.parametrize("goal", [0.7, 0.4, 0.2])
def test_a_memory_goal_is_met_by_what_is_saved(goal):
    made = model()
    x, y = batch()
    before = step(made, x, y)[2]
    report = compress_activations(made, memory_goal=goal, batch=(x, y))
    others = before - report.bytes_before  # the loss, and parameters, which are in that sum
    assert report.bytes_after <= goal * report.bytes_before
    assert step(made, x, y)[2] <= report.bytes_after + others


@on_torch
def test_a_compressed_model_trains_and_goes_back():
    made = model()
    x, y = batch()
    report = compress_activations(made)
    assert set(report.compressed) == {layer.name for layer in made.layers}
    assert "Conv2D" in str(report)
    made.fit(x, y, verbose=0)
    with pytest.raises(ConfigError, match="compressed already"):
        compress_activations(made)
    report.revert()
    report.revert()
    assert not any("call" in vars(layer) for layer in made.layers)
    assert compress_activations(made, "int4").compressed


@on_torch
def test_layers_of_layers_each_once():
    shared = keras.layers.Dense(8, name="shared")
    block = keras.Sequential([keras.Input((8,)), shared], name="block")
    outer = keras.Sequential([keras.Input((8,)), block, shared, block])
    report = compress_activations(outer)
    assert report.compressed == ["block/shared"]
    assert "one by one" in report.refused["block"]


@on_torch
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "int2"}, "int8, int4, sparse"),
        ({"smallest": -1}, "bytes"),
        ({"smallest": 0.5}, "bytes"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        compress_activations(model(), **options)


@on_torch
def test_what_is_no_built_model_is_refused():
    with pytest.raises(ConfigError, match="not\\. Call it on a batch"):
        compress_activations(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(TypeError, match="Keras model"):
        compress_activations("model")


@pytest.mark.backend("tensorflow")
def test_other_back_ends_say_so(monkeypatch):
    made = model()
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(ConfigError, match="compressed under jax, tensorflow, torch"):
        compress_activations(made)
