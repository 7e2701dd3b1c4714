"""Blocks, and the bounded plans made of them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.plan import LayerPlan, PrecisionPlan
from deepseek_hpf.scheduling.blocks import Block, blocks_of
from deepseek_hpf.scheduling.plan_space import BoundedLevels, PlanSpace, in_policy

pytestmark = pytest.mark.pure

LOW = LayerPlan(policy="mixed_float16", kernel=True)
paths = st.lists(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), unique=True, max_size=15
)


@given(paths, st.integers(1, 6))
def test_blocks_hold_every_layer_once_and_keep_to_the_bound(given_paths, most):
    blocks = blocks_of(given_paths, most, critical=given_paths[::2])
    assert [path for block in blocks for path in block.layers] == given_paths
    assert len(blocks) <= most
    assert all(block.layers for block in blocks)
    assert [p for block in blocks for p in block.critical] == given_paths[::2]


def test_a_nested_model_is_cut_where_its_own_structure_is():
    nested = ["stem", *(f"stage{i}/block{j}/conv" for i in range(2) for j in range(2)), "head"]
    names = [block.name for block in blocks_of(nested, 6)]
    assert names == ["stem", "stage0/block0/conv", "stage0/block1/conv",
                     "stage1/block0/conv", "stage1/block1/conv", "head"]  # fmt: skip
    assert [block.name for block in blocks_of(nested, 4)] == ["stem", "stage0", "stage1", "head"]


def test_a_flat_model_is_cut_into_even_runs():
    blocks = blocks_of([f"conv{i}" for i in range(10)], 4)
    assert [len(block.layers) for block in blocks] == [2, 3, 2, 3]
    assert blocks[0].name == "conv0..conv1"


def test_no_block_is_refused():
    with pytest.raises(ConfigError, match="at least 1 block"):
        blocks_of(["a"], 0)


def space_of(count, critical=()):
    names = [f"l{i}" for i in range(count)]
    base = PrecisionPlan({**dict.fromkeys(names, LOW), "other": LOW})
    return PlanSpace(base, blocks_of(names, max(count, 1), critical))


def test_levels_make_plans():
    base = PrecisionPlan({"n": LOW, "d": LOW, "out": LayerPlan(policy="float32"), "x": LOW})
    space = PlanSpace(base, [Block("b", ("n", "d", "out"), ("n",))])
    assert space.plan(space.bottom) == base
    assert space.plan((1,)).changes_from(base) == ("n",)
    top = space.plan(space.top)
    assert top.changes_from(base) == ("d", "n")
    assert top["n"] == LOW.replace(policy="float32")  # what else it says stays
    assert in_policy(top, "mixed_bfloat16", ["x", "n"]).changes_from(top) == ("x",)


def test_critical_layers_go_first_unless_another_is_at_fault():
    space = space_of(2, critical=["l0"])
    assert space.higher(0, 0) == 1
    assert space.higher(0, 0, "l0") == 1
    assert space.higher(0, 0, "elsewhere") == 2
    assert space.higher(0, 1, "l0") == space.higher(1, 0) == space.higher(1, 2) == 2
    assert (space.lower(0, 2), space.lower(0, 1), space.lower(1, 2)) == (1, 0, 0)


def test_a_layer_inside_of_one_belongs_to_its_block():
    space = space_of(2)
    assert space.block_of("l1/query/inner") == 1
    assert space.block_of("elsewhere") is space.block_of(None) is None


@pytest.mark.parametrize("wrong", [("a", "a"), ("missing",)])
def test_blocks_that_do_not_fit_the_plan_are_refused(wrong):
    with pytest.raises(ConfigError, match=wrong[0]):
        PlanSpace(PrecisionPlan({"a": LOW}), [Block("x", wrong)])


@given(st.integers(1, 4), st.integers(2, 6), st.data())
def test_bounded_levels_never_exceed_the_bound_and_never_fall_short(count, most, data):
    space = space_of(count)
    bounded = BoundedLevels(space, most)
    level = st.tuples(*[st.integers(0, 2)] * count)
    for wanted in data.draw(st.lists(level, max_size=20)):
        taken = bounded.nearest(wanted)
        assert all(a >= b for a, b in zip(taken, wanted, strict=True))
        assert len(bounded.seen) <= most
        assert len(set(bounded.seen)) == len(bounded.seen)
        assert bounded.nearest(taken) == taken


def test_all_plans_fit_where_there_is_room():
    space = space_of(2)
    bounded = BoundedLevels(space, 9)
    for wanted in itertools.product(range(3), repeat=2):
        assert bounded.nearest(wanted) == wanted
    with pytest.raises(ConfigError, match="at least 2"):
        BoundedLevels(space, 1)
