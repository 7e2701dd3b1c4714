"""The source code of Python's standard library as sequences of characters."""

import ast
import random
import sysconfig

import keras
import numpy as np
import pytest

from deepseek_hpf import data
from deepseek_hpf.data.python_source_dataset import UNKNOWN, encoded
from deepseek_hpf.errors import ConfigError


def decoded(indices):
    return "".join(data.PYTHON_CHARACTERS[index] for index in np.ravel(indices))


def module(name):
    with open(f"{sysconfig.get_path('stdlib')}/{name}.py", encoding="utf-8") as file:
        return file.read()


@pytest.mark.pure
def test_the_splits_are_the_library_and_share_nothing():
    first = module("__future__")
    size = random.randint(3000, len(first))
    (train, _), (validation, _) = data.python_source(length=1, size=size)
    cut = size - size // 10
    assert decoded(train) == first[: cut - 1]  # the last character has none that follows
    assert decoded(validation) == first[cut : size - 1]
    ast.parse(first)


@pytest.mark.pure
def test_targets_are_the_characters_that_follow():
    length = random.randint(2, 300)
    inputs, targets = data.python_source("train", length=length, size=50_000)
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.shape == targets.shape == (len(inputs), length)
    np.testing.assert_array_equal(np.ravel(inputs)[1:], np.ravel(targets)[:-1])
    assert 45_000 - length - 10 < inputs.size < 45_000 + 100


@pytest.mark.pure
def test_a_larger_size_goes_on_where_a_smaller_one_ends_and_is_bounded():
    small, large, all_of_it = (
        np.ravel(data.python_source("train", length=8, size=size)[0])
        for size in (4000, 40_000, 2**31)
    )
    cut = 3600 - 8  # within the first module; its last tenth is for validation
    np.testing.assert_array_equal(small[:cut], large[:cut])
    assert small.size < 4000 < large.size < 40_000
    assert 1_000_000 < all_of_it.size < 20_000_000
    assert (all_of_it >= 0).all()
    assert (all_of_it < len(data.PYTHON_CHARACTERS)).all()


@pytest.mark.pure
def test_every_character_has_an_index():
    assert len(data.PYTHON_CHARACTERS) == len(set(data.PYTHON_CHARACTERS)) == 97
    assert decoded(encoded(data.PYTHON_CHARACTERS)) == data.PYTHON_CHARACTERS
    assert decoded(encoded("a\tb")) == "a   b"
    assert decoded(encoded("é\x7f\x0c\ud800😀")) == 5 * UNKNOWN
    assert encoded("").shape == (0,)


def test_batches_train():
    train, validation = data.python_source(batch_size=16, length=32, size=20_000)
    count = len(data.python_source("train", length=32, size=20_000)[0])
    assert len(train) == count // 16
    vocabulary = len(data.PYTHON_CHARACTERS)
    model = keras.Sequential(
        [keras.layers.Embedding(vocabulary, 8), keras.layers.Dense(vocabulary)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss)
    history = model.fit(train, validation_data=validation, epochs=3, verbose=0).history
    assert history["val_loss"][-1] < history["val_loss"][0] < np.log(vocabulary)


def test_the_order_is_new_each_epoch_and_the_same_from_the_same_seed():
    def orders(seed):
        batches = data.python_source("train", batch_size=4, length=16, size=4000, seed=seed)
        for _ in range(2):
            yield np.concatenate([keras.ops.convert_to_numpy(x) for x, _ in batches]).tolist()
            if hasattr(batches, "on_epoch_end"):
                batches.on_epoch_end()

    first, second = orders(3)
    assert [first, second] == list(orders(3))
    assert first != second
    assert first != next(orders(4))


@pytest.mark.pure
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "'train', 'validation' or None. Received: split='test'"),
        ({"length": 0}, "`length` must be a positive integer. Received: length=0"),
        ({"length": True}, "Received: length=True"),
        ({"size": 1e6}, "`size` must be a positive integer. Received: size=1000000.0"),
        ({"size": 500, "length": 50}, "length=50, and 50 characters in the split"),
        ({"batch_size": 0}, "`batch_size` must be an integer at least 1"),
        ({"size": 4000, "batch_size": 29}, "between 1 and 28, the examples in the split"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError) as caught:
        data.python_source(**arguments)
    assert message in str(caught.value)


@pytest.mark.pure
def test_a_python_without_its_source(monkeypatch, tmp_path):
    (tmp_path / "not_of_python.py").write_text("x = 1\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match=r"source code in .* which has no module"):
        data.python_source()
