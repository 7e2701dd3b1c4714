"""All ranks decide alike; a state that disagrees gives way to the leader's, loudly."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threaded_group import on_ranks

from deepseek_hpf.distributed.coordination import Coordination
from deepseek_hpf.distributed.group import Alone
from deepseek_hpf.errors import PrecisionError

pytestmark = pytest.mark.pure


def decided(states, flags=None):
    """What `decide` returned or raised on each rank."""
    flags = [False] * len(states) if flags is None else flags

    def work(group):
        coordination = Coordination(group, {})
        return coordination.decide(states[group.rank], nonfinite=flags[group.rank], sums=(1.0,))

    return on_ranks(len(states), work)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_one_bad_rank_skips_on_all(bad):
    outcomes = decided([{"step": 3}] * 3, [rank == bad for rank in range(3)])
    assert len({decision for decision, _ in outcomes}) == 1
    decision, theirs = outcomes[0]
    assert decision.skip
    assert decision.culprit == bad
    assert theirs is None


def test_no_bad_rank_skips_on_none():
    for decision, theirs in decided([{"step": 3, "plan": "ab"}] * 3):
        assert not decision.skip
        assert decision.norms == (3**0.5,)
        assert theirs is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["aa", "bb", "cc"]), min_size=1, max_size=5))
def test_the_leaders_plan_is_for_those_that_have_another(plans):
    states = [{"step": 1, "plan": plan} for plan in plans]
    theirs = [state for _, state in decided(states)]
    assert theirs == [None if state == states[0] else states[0] for state in states]


def test_a_disagreement_is_told_by_the_rank_and_by_the_leader(caplog):
    with caplog.at_level(logging.WARNING):
        decided([{"scale": 8.0}, {"scale": 8.0}, {"scale": 4.0}])
    told = [record.getMessage() for record in caplog.records]
    assert (
        told
        == ["Rank 2 disagrees with rank 0: scale=4.0 (rank 0: 8.0). It goes on as rank 0 does."] * 2
    )


def test_agreement_is_told_to_nobody(caplog):
    with caplog.at_level(logging.DEBUG):
        decided([{"scale": 8.0}] * 2)
    assert caplog.records == []


def test_ranks_at_different_steps_are_refused_on_all():
    errors = decided([{"step": 7}, {"step": 7}, {"step": 8}])
    assert {type(error) for error in errors} == {PrecisionError}
    assert "rank 2 at step 8" in str(errors[1])


def test_messages_are_counted():
    coordination = Coordination(Alone(), {})
    for _ in range(3):
        coordination.decide({}, sums=(1.0, 2.0))
    assert coordination.messages == 3
    assert coordination.message_bytes == 8 * (11 + 2)
