"""The sum of the messages says what the maximum of the flags, and equality, would say."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_hpf.config import FLOAT32_MAX, PrecisionConfig
from deepseek_hpf.distributed.fingerprint import config_values, fingerprint
from deepseek_hpf.distributed.message import HEAD, StepMessage, decide
from deepseek_hpf.errors import PrecisionError

pytestmark = pytest.mark.pure

FINGERPRINTS = st.binary(min_size=8, max_size=8)
NORMS = st.floats(0, 1e60)


def total_of(messages):
    return [sum(column) for column in zip(*(m.encode() for m in messages), strict=True)]


def said_by(flags, prints, norms=None):
    norms = [()] * len(flags) if norms is None else norms
    each = zip(flags, prints, norms, strict=True)
    return [
        StepMessage(rank=r, nonfinite=flag, fingerprint=print_, sums=squared)
        for r, (flag, print_, squared) in enumerate(each)
    ]


@given(st.lists(st.tuples(st.booleans(), FINGERPRINTS), min_size=1, max_size=40), st.randoms())
def test_one_sum_decides_as_maximum_and_equality_would(ranks, rng):
    flags, prints = zip(*ranks, strict=True)
    messages = said_by(flags, prints)
    decision = decide(total_of(messages), len(messages))
    assert decision.skip == max(flags)
    assert decision.nonfinite_ranks == sum(flags)
    assert decision.culprit == (flags.index(True) if sum(flags) == 1 else None)
    assert decision.agreed == (len(set(prints)) == 1)
    rng.shuffle(messages)
    assert decide(total_of(messages), len(messages)) == decision


@given(st.integers(1, 40), st.integers(0, 39), FINGERPRINTS, st.integers(0, 63))
def test_one_bit_of_one_rank_is_a_disagreement(size, odd, alike, bit):
    flipped = (int.from_bytes(alike, "big") ^ (1 << bit)).to_bytes(8, "big")
    prints = [flipped if rank == odd else alike for rank in range(size)]
    decision = decide(total_of(said_by([False] * size, prints)), size)
    assert decision.agreed == (odd >= size or size == 1)


@pytest.mark.parametrize("size", [2, 10_000, 2**21])
def test_the_sums_are_exact_for_as_many_ranks_as_there_may_be(size):
    largest = b"\xff" * 8
    encoded = StepMessage(rank=0, fingerprint=largest, nonfinite=False).encode()
    alike = [size * x for x in encoded]
    assert decide(alike, size).agreed
    other = StepMessage(rank=0, fingerprint=b"\xff" * 7 + b"\xfe", nonfinite=False).encode()
    one_differs = [total - x + y for total, x, y in zip(alike, encoded, other, strict=True)]
    assert not decide(one_differs, size).agreed
    assert max(alike) < 2**53


@given(st.lists(st.tuples(NORMS, NORMS), min_size=1, max_size=20), FINGERPRINTS)
def test_squares_of_shards_add_up(norms, alike):
    messages = said_by([False] * len(norms), [alike] * len(norms), norms)
    found = decide(total_of(messages), len(norms)).norms
    wanted = np.sqrt(np.sum(np.asarray(norms, np.float64), axis=0))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_norm_beyond_float32_is_capped():
    (message,) = said_by([False], [b"abcdefgh"], [(FLOAT32_MAX**2 * 4,)])
    assert decide(message.encode(), 1).norms == (FLOAT32_MAX,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_skips_and_is_not_sent(bad):
    messages = said_by([False, False], [b"abcdefgh"] * 2, [(bad,), (4.0,)])
    assert all(map(math.isfinite, messages[0].encode()))
    decision = decide(total_of(messages), 2)
    assert decision.skip
    assert decision.culprit == 0
    assert decision.norms == (2.0,)


@pytest.mark.parametrize("total", [[], [0.0] * HEAD, [3.0] + [0.0] * HEAD])
def test_another_message_in_its_place_is_refused(total):
    with pytest.raises(PrecisionError, match="sum of the messages of 2 ranks"):
        decide(total, 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(value):
    keys = list(value)
    random.Random(0).shuffle(keys)
    assert fingerprint({key: value[key] for key in keys}) == fingerprint(value)
    assert fingerprint({**value, "\x00 one more": 1}) != fingerprint(value)


def test_configurations_that_mean_the_same_have_one_fingerprint():
    written_out = PrecisionConfig(kernels=True, loss_scale={"growth_steps": 2000})
    assert config_values(written_out) == config_values(PrecisionConfig())
    other = PrecisionConfig(loss_scale={"growth_steps": 2001})
    assert fingerprint(config_values(other)) != fingerprint(config_values(PrecisionConfig()))


def test_a_fingerprint_is_the_same_everywhere():
    assert fingerprint({"scale": 32768.0, "step": 3}).hex() == "4356285a959b5346"
