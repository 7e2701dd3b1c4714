"""Timing in turns: every candidate in every round, ratios within rounds."""

import time

import pytest

from deepseek_hpf.timing import Spread, Timings, time_in_turns

pytestmark = pytest.mark.pure


def test_ratios_are_taken_within_a_round():
    # The machine slows down tenfold after the first round: the medians would say 10, not 2.
    timings = Timings({"a": [2.0, 20.0, 20.0], "b": [1.0, 10.0, 10.0]})
    assert timings.speedup("b", over="a") == Spread(2.0, 2.0, 2.0)
    assert timings.speedup("a", over="b").median == 0.5
    assert timings.spread("a").median == 20.0


def test_quartiles():
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_all_candidates_take_part_in_every_round():
    calls = []
    candidates = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = time_in_turns(candidates, rounds=4, calls=2, warm_up=1)
    assert {name: len(values) for name, values in timings.seconds.items()} == dict.fromkeys(
        "abc", 4
    )
    rounds = [calls[3 + 6 * i : 9 + 6 * i : 2] for i in range(4)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len({r[0] for r in rounds}) > 1
    assert len(calls) == 3 + 4 * 3 * 2


def test_a_deadline_ends_it_after_a_whole_round():
    timings = time_in_turns(
        {"a": lambda: None, "b": lambda: None}, rounds=50, deadline=time.monotonic() - 1
    )
    assert {len(values) for values in timings.seconds.values()} == {1}
