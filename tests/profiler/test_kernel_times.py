"""Times of XLA's kernels go to the operations that the kernels were made of."""

import pytest

from deepseek_hpf.profiler.census_operations import Array, TracedOperation
from deepseek_hpf.profiler.kernel_times import Kernel, kernels_of, plain_name, with_times

pytestmark = pytest.mark.pure
SMALL, LARGE = (Array("float32", (10,)),), (Array("float32", (30,)),)


def operation(name, flops=0.0, arrays=SMALL, times=1):
    place, _, kind = name.rpartition("/")
    return TracedOperation(kind, place, arrays, arrays, flops, times=times)


def times(operations, *kernels):
    timed, lost = with_times(operations, kernels)
    return [each.seconds for each in timed], lost


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("jit(train_step)/jvp(dense)/dot_general", "jvp(dense)/dot_general"),
        ("jit(f)/jvp(conv)/jit(relu)/max", "jvp(conv)/max"),
        ("jit(f)/transpose(jvp(r))/while/body/closed_call/cell/mul", "transpose(jvp(r))/cell/mul"),
        ("jit(f)/cond/branch_1_fun/add", "add"),
        ("d[0]", "d[0]"),
        ("", ""),
    ],
)  # fmt: skip
def test_names_are_without_the_way_of_the_call(name, plain):
    assert plain_name(name) == plain


def test_a_fused_kernel_goes_to_the_operation_of_most_arithmetic():
    operations = [operation("a/neg", 10.0), operation("a/dot", 100.0), operation("a/cast")]
    assert times(operations, Kernel(("a/cast", "a/neg", "a/dot"), 2.0)) == ([None, 2.0, None], 0.0)


def test_loops_count_as_arithmetic():
    operations = [operation("a/neg", 10.0, times=20), operation("a/dot", 100.0)]
    assert times(operations, Kernel(("a/dot", "a/neg"), 2.0)) == ([2.0, None], 0.0)


def test_of_moves_the_result_counts():
    operations = [operation("a/cast"), operation("a/transpose")]
    assert times(operations, Kernel(("a/transpose", "a/cast"), 2.0)) == ([None, 2.0], 0.0)


def test_operations_of_one_name_share_by_bytes():
    operations = [
        operation("a/mul", 10.0),
        operation("a/mul", 30.0, LARGE),
        operation("b/mul", 1.0),
    ]
    assert times(operations, Kernel(("a/mul",), 4.0)) == ([1.0, 3.0, None], 0.0)


def test_operations_without_bytes_share_alike():
    empty = (Array("float32", (0,)),)
    operations = [operation("a/mul", 0.0, empty), operation("a/mul", 0.0, empty)]
    assert times(operations, Kernel(("a/mul",), 1.0)) == ([0.5, 0.5], 0.0)


def test_what_fits_nothing_is_told_apart():
    assert times([operation("a/mul")], Kernel((), 1.0), Kernel(("b/mul",), 2.0)) == ([None], 3.0)


HLO = """
HloModule jit_f, is_scheduled=true

%inner (a: f32[8]) -> f32[8] {
  ROOT %exp.1 = f32[8]{0} exponential(%a), metadata={op_name="jit(f)/a/exp"}
}

%fused.1 (a: f32[8]) -> f32[8] {
  %call.1 = f32[8]{0} fusion(%a), kind=kLoop, calls=%inner
  ROOT %neg.1 = f32[8]{0} negate(%call.1), metadata={op_name="jit(f)/a/neg" stack_frame_id=2}
}

%body (a: f32[8]) -> f32[8] {
  ROOT %fusion.1 = f32[8]{0} fusion(%a), calls=%fused.1, metadata={op_name="jit(f)/a/neg"}
}

ENTRY %main (a: f32[8]) -> (f32[8], s32[]) {
  %copy.1 = f32[8]{0} copy(%a)
  ROOT %while.1 = (f32[8]{0}, s32[]) while(%copy.1), condition=%cond, body=%body
}
"""


def test_the_program_is_read():
    seconds = {"fusion.1": 1.0, "while.1": 9.0, "copy.1": 0.5, "elsewhere": 7.0}
    assert kernels_of(HLO, seconds) == [Kernel(("a/neg", "a/exp"), 1.0), Kernel((), 0.5)]


def test_no_program_no_kernels():
    assert kernels_of("", {"a": 1.0}) == []
