"""Ratios within rounds, means over models, the worst of them."""

import math
import random

import pytest
from made_up_results import failed, machine, result

from deepseek_hpf.bench.records import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    OURS,
    REWRITE,
    BenchSettings,
    ContenderResult,
)
from deepseek_hpf.bench.summary import (
    best_peer,
    geometric_mean,
    in_groups,
    names,
    over_best_peer,
    seconds,
    sentences,
    speedup,
    summarize,
)

pytestmark = pytest.mark.pure


def test_ratios_are_within_rounds():
    # The second round ran at half the speed: the ratio of the medians of other rounds would lie.
    found = speedup(result(ours=0.5), OURS, FLOAT32)
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)
    assert speedup(result(), FLOAT16, FLOAT32).median == 0.25
    assert speedup(result(), FLOAT16, OURS) is None  # never timed in turns
    assert speedup(result(), REWRITE, FLOAT32) is None
    assert speedup(failed(), OURS, FLOAT32) is None


def test_seconds_are_of_the_group_with_most_rounds():
    assert seconds(result(), FLOAT32).median == 1.5
    assert seconds(result(), FLOAT16).median == 4.0
    assert seconds(result(), REWRITE) is None
    assert names(result()) == [FLOAT32, BFLOAT16, FLOAT16, OURS]


def test_the_best_peer_is_not_ours():
    assert best_peer(result(ours=0.1)) == BFLOAT16
    assert best_peer(failed()) is None
    assert over_best_peer(result(ours=0.4)).median == pytest.approx(2.0)
    alone = result(contenders=(ContenderResult(name=OURS),), turns=({OURS: (1.0,)},))
    assert best_peer(alone) is None
    assert over_best_peer(alone) is None


def test_geometric_mean():
    values = [random.uniform(0.2, 5) for _ in range(20)]
    product = math.prod(values)
    assert geometric_mean(values) == pytest.approx(product ** (1 / 20))
    assert geometric_mean([]) is None
    assert geometric_mean([3.0]) == pytest.approx(3.0)


def test_the_suite_in_figures_and_words():
    models = [result("A", ours=0.5), result("B", ours=0.25), failed("C"), result("D", ours=0.9)]
    found = summarize(models)
    assert found.models == 3
    assert found.over_float32 == pytest.approx((2 * 4 / 0.9) ** (1 / 3))
    assert found.over_bfloat16 == pytest.approx(0.8 * found.over_float32)
    assert found.over_best_peer == pytest.approx(found.over_bfloat16)
    assert (found.worst.model, found.worst.peer) == ("D", BFLOAT16)
    assert found.worst.ratio == pytest.approx(0.8 / 0.9)
    first, second = sentences(found)
    assert "over 3 models" in first
    assert "2.07 times as fast as Keras float32" in first
    assert second == "Worst model: D, 0.89 times as fast as Keras mixed_bfloat16."


def test_nothing_is_said_of_nothing_or_of_one():
    for models in ([], [failed()], [result()]):
        assert sentences(summarize(models)) == []
    assert summarize([failed()]).worst is None


def test_groups_are_of_one_machine_and_the_last_measurement_counts():
    first, again = result("A", ours=0.5), result("A", ours=0.4)
    other = result("A", machine=machine("jax"))
    newer = result("A", machine=machine(versions={"keras": "4.0"}))
    larger = result("A", settings=BenchSettings(batch_size=64))
    groups = in_groups([first, other, again, newer, larger])
    assert groups == [[again, larger], [other], [newer]]
    assert in_groups([]) == []
