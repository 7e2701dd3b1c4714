"""Which layer made the first value that was not finite, from what passed."""

import itertools

import pytest

from deepseek_hpf.dynamic.blame import Fault, Mark, backward_fault, first_fault, is_skipped

pytestmark = pytest.mark.pure

# A step of a model of a layer `a`, and a composite layer `b` that holds `b/c`.
STEP = [
    ("output", "a"),
    ("output", "b/c"),
    ("output", "b"),
    ("output", ""),
    ("loss", ""),
    ("output_gradient", "b"),
    ("output_gradient", "b/c"),
    ("input_gradient", "b/c"),
    ("input_gradient", "b"),
    ("output_gradient", "a"),
    ("input_gradient", "a"),
    ("weight_gradient", "a"),
    ("weight_gradient", "b/c"),
]


def step(*bad, is_low=True):
    return [Mark(*each, is_low=is_low, is_bad=each in bad) for each in STEP]


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ((), None),
        ([("output", "a")], Fault("forward", "a")),
        ([("output", "b/c"), ("output", "b")], Fault("forward", "b/c")),
        ([("output", "")], Fault("forward", "b")),
        ([("loss", "")], Fault("loss", None)),
        ([("output_gradient", "b"), ("output_gradient", "b/c")], Fault("backward", "b/c")),
        ([("input_gradient", "b/c"), ("input_gradient", "b")], Fault("backward", "b/c")),
        ([("output_gradient", "a"), ("weight_gradient", "a")], Fault("backward", "a")),
        ([("weight_gradient", "a")], Fault("backward", "a")),
        ([("weight_gradient", "a"), ("weight_gradient", "b/c")], Fault("backward", "b/c")),
        ([("input_gradient", "a"), ("weight_gradient", "b/c")], Fault("backward", "b/c")),
    ],
)
def test_the_first_fault(bad, fault):
    assert first_fault(step(*bad)) == fault


def test_forward_comes_before_backward_whatever_else_is_bad():
    for forward, backward in itertools.product(STEP[:5], STEP[5:]):
        marks = step(forward, backward)
        assert first_fault(marks).phase != "backward"
        assert backward_fault(marks) == backward_fault(step(backward))


def test_a_gradient_that_comes_bad_from_the_loss():
    arrived = [("output_gradient", "b"), ("output_gradient", "b/c")]
    assert first_fault(step(*arrived, is_low=False)) == Fault("loss", None)
    later = step(("output_gradient", "a"), is_low=False)
    assert first_fault(later) == Fault("backward", "a")


def test_only_gradients_of_weights_have_a_step_skipped():
    for each in STEP:
        assert is_skipped(step(each)) == (each[0] == "weight_gradient")
    assert not is_skipped([])
    assert first_fault([]) is None
    assert first_fault([Mark("weight_gradient", "x", is_bad=True)]) == Fault("backward", "x")
    assert first_fault([Mark("output", "", is_bad=True)]) == Fault("forward", None)
