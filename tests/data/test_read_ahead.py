"""A thread that reads ahead: order, exceptions, and its end."""

import gc
import threading
import time

import pytest

from deepseek_hpf.data.read_ahead import ReadAhead

pytestmark = pytest.mark.pure


def threads():
    return [t for t in threading.enumerate() if t.name == "deepseek_hpf-read-ahead"]


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("depth", [1, 2, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_items_keep_their_order(depth, count):
    ahead = ReadAhead(lambda: iter(range(count)), depth)
    assert list(ahead) == list(range(count))
    assert list(ahead) == []
    wait_for(lambda: not threads())


def test_nothing_is_read_before_the_first_item_is_asked_for():
    calls = []
    ahead = ReadAhead(lambda: iter(calls.append(1) or [1]), 3)
    ahead.settle()
    assert not calls
    assert not threads()
    ahead.close()
    assert next(ahead, None) is None
    assert not calls


@pytest.mark.parametrize("depth", [1, 3])
def test_it_reads_depth_items_ahead_and_no_more(depth):
    read = []

    def source():
        for number in range(20):
            read.append(number)
            yield number

    ahead = ReadAhead(source, depth)
    for taken in range(5):
        assert next(ahead) == taken
        ahead.settle()
        assert read == list(range(taken + 1 + depth))
    ahead.close()


def test_an_exception_comes_in_the_place_of_its_item():
    def source():
        yield 1
        yield 2
        raise OSError("no such image")

    ahead = ReadAhead(source, 10)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="no such image"):
        next(ahead)
    assert list(ahead) == []


def test_an_exception_of_what_makes_the_iterator():
    def source():
        raise KeyError("split")

    with pytest.raises(KeyError, match="split"):
        next(ReadAhead(source, 1))


@pytest.mark.parametrize("how", ["close", "let go"])
def test_the_thread_ends_and_closes_its_source(how):
    closed = threading.Event()

    def source():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    ahead = ReadAhead(source, 2)
    assert next(ahead) == 0
    if how == "close":
        ahead.close()
        assert next(ahead, None) is None
    del ahead
    gc.collect()
    assert closed.wait(30)
    wait_for(lambda: not threads())
