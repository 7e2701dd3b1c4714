"""Values go to optimizers in the order of their first steps, and die with them."""

import gc

import pytest
import torch

from deepseek_hpf.torch.per_optimizer import PerOptimizer

pytestmark = pytest.mark.pure


def create_optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def test_each_has_its_own():
    counter = iter(range(10))
    values = PerOptimizer(lambda: next(counter))
    first, second = create_optimizer(), create_optimizer()
    assert [values.of(o) for o in (first, second, first)] == [0, 1, 0]
    assert values.values() == [0, 1]


def test_a_new_one_does_not_get_a_living_ones_value():
    counter = iter(range(10))
    values = PerOptimizer(lambda: next(counter))
    first, second = create_optimizer(), create_optimizer()
    assert (values.of(first), values.of(second)) == (0, 1)
    del first
    gc.collect()
    third = create_optimizer()
    assert (values.of(third), values.of(second)) == (2, 1)
    assert values.values() == [1, 2]


def test_what_was_saved_waits():
    values = PerOptimizer(lambda: "new")
    known = create_optimizer()
    values.of(known)
    values.load(["a", "b"])
    assert values.values() == ["a", "b"]
    assert values.of(known) == "a"
    others = create_optimizer(), create_optimizer()
    assert [values.of(o) for o in others] == ["b", "new"]
    assert values.values() == ["a", "b", "new"]
