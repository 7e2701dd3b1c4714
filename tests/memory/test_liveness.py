"""Buffers live from the operation that makes them to the last one that reads them."""

import pytest

from deepseek_hpf.memory.batch_search import BatchSearch, doubling, multiple_below
from deepseek_hpf.memory.liveness import Work, peak_bytes

pytestmark = pytest.mark.pure


def test_a_chain_holds_two_at_a_time():
    chain = [Work((i,), ((i + 1, 10),)) for i in range(5)]
    assert peak_bytes(chain) == 20
    assert peak_bytes([Work(w.reads, w.writes, takes_over=True) for w in chain]) == 10


def test_what_is_read_again_later_stays():
    forward = [Work((i,), ((i + 1, 10),)) for i in range(3)]
    backward = [Work((i,), ((10 + i, 1),)) for i in (3, 2, 1)]
    # Three kept, and the first gradient; results live to the end.
    assert peak_bytes([*forward, *backward]) == 31
    assert peak_bytes([*forward, *backward], results=[10, 11, 12, 13]) == 31


def test_what_was_there_before_is_not_counted_and_temporaries_are():
    assert peak_bytes([Work((0, 1), ((2, 5),), temporary=7)]) == 12
    assert peak_bytes([]) == 0


def test_an_input_that_is_needed_later_is_not_taken_over():
    works = [
        Work((0,), ((1, 10),)),
        Work((1,), ((2, 10),), takes_over=True),
        Work((1, 2), ((3, 10),), takes_over=True),
    ]
    assert peak_bytes(works) == 20


@pytest.mark.parametrize("each", [1, 7, 100, 999])
@pytest.mark.parametrize("fixed", [0, 500])
@pytest.mark.parametrize("guess", [1, 40, 5000, 10**9])
def test_the_search_ends_at_the_largest_multiple(each, fixed, guess):
    budget, ceiling, tried = 10_000, 4096, []

    def attempt(rows):
        tried.append(rows)
        peak = fixed + each * rows
        return peak if peak <= budget else None

    found = BatchSearch(attempt, budget, ceiling, 8).run(guess)
    largest = min(multiple_below((budget - fixed) / each, 8), ceiling)
    assert found == largest
    assert len(tried) <= 12
    assert len(set(tried)) == len(tried)


def test_nothing_fits():
    tried = []
    search = BatchSearch(lambda rows: tried.append(rows), 10, 4096, 8)
    assert search.run(20) is None
    assert tried == [16, 8, 4, 2, 1]


def test_a_ceiling_that_is_no_multiple():
    assert BatchSearch(lambda rows: rows, 10**6, 30, 8).run(1000) == 24
    assert BatchSearch(lambda rows: rows, 10**6, 5, 8).run(1000) == 4
    assert doubling(3, 3) == [3]
