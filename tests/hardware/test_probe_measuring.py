"""Measuring, with made-up works whose times are told to a made-up clock."""

import math
import time

import pytest

from deepseek_hpf.hardware import measuring
from deepseek_hpf.hardware.measuring import measure
from deepseek_hpf.hardware.throughput import NO_TIME
from deepseek_hpf.hardware.workloads import Workload


class Clock:
    """Time that passes only in works; they note what they did."""

    def __init__(self, monkeypatch):
        self.now, self.done, self.overhead = 0.0, [], 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def workload(self, seconds, name="matmul"):
        """Work of size n takes n times the dtype's seconds; an exception is what it raises."""

        def prepare(dtype, size):
            def work():
                self.done.append((dtype, size[0]))
                waiting = self.overhead
                self.now += waiting[dtype] if isinstance(waiting, dict) else waiting
                self.now += seconds[dtype] * size[0]

            if isinstance(seconds[dtype], Exception):
                raise seconds[dtype]
            return work

        sizes = ((1,), (8,), (64,), (512,))
        return Workload(name, sizes, lambda dtype, size: 1e6 * size[0], prepare)

    def measure(self, seconds, first=0, until=math.inf, name="matmul"):
        said = []
        figures = measure(self.workload(seconds, name), list(seconds), first, until, said.append)
        assert list(figures) == list(seconds)
        return figures, said


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_rates_at_a_size_that_is_long_enough(clock):
    figures, said = clock.measure({"float32": 1e-3, "bfloat16": 2.5e-4})
    assert figures["float32"].rate == pytest.approx(1e9)
    assert figures["bfloat16"].rate == pytest.approx(4e9)
    assert {figure.note for figure in figures.values()} == {""}
    # 1 ms is too short, 8 ms is long enough.
    assert {size for _, size in clock.done} == {1, 8}
    assert [size for dtype, size in clock.done if dtype == "bfloat16"][-1] == 8
    assert said == ["matmul, float32", "matmul, bfloat16"]


def test_sizes_are_skipped_and_the_last_has_to_do(clock):
    clock.measure({"float32": 1e-4})
    assert {size for _, size in clock.done} == {1, 64}
    clock.done.clear()
    clock.measure({"float32": 1e-7}, first=1)
    assert {size for _, size in clock.done} == {8, 512}


def test_the_smallest_work_is_not_believed_to_be_long(clock):
    # 8 ms of which all is waiting: the next one is no longer.
    clock.overhead = 8e-3
    clock.measure({"float32": 1e-5})
    assert {size for _, size in clock.done} == {1, 8}
    clock.done.clear()
    clock.overhead = 0.0
    clock.measure({"float32": 0.5})
    assert {size for _, size in clock.done} == {1}


def test_a_dtype_that_is_far_slower_never_sees_a_large_work(clock):
    figures, _ = clock.measure({"float32": 1e-4, "float16": 0.9, "bfloat16": 1e-4})
    assert figures["float16"].rate == pytest.approx(1e6 / 0.9)
    assert "stopped" in figures["float16"].note
    # Once to compile it, once in time.
    assert clock.done.count(("float16", 1)) == 2
    assert ("float16", 8) not in clock.done
    assert figures["bfloat16"].rate == pytest.approx(1e10)
    assert figures["bfloat16"].note == ""


def test_a_slow_one_goes_as_far_as_it_can(clock):
    figures, _ = clock.measure({"float32": 1e-4, "float16": 0.02})
    # 64 would take 1.28 s; 8 takes 0.16 s, and from there the step is tried, since it may be that
    # most of that was waiting.
    assert {size for dtype, size in clock.done if dtype == "float16"} == {1, 8, 64}
    assert figures["float16"].rate == pytest.approx(5e7)
    # It is as good as the others', but takes no turns.
    assert figures["float16"].note == ""
    assert clock.done.count(("float16", 64)) == 2


def test_waiting_is_told_from_slowness(clock):
    clock.overhead = {"float32": 0.0, "bfloat16": 0.2}
    figures, _ = clock.measure({"float32": 1e-4, "bfloat16": 1e-5})
    assert figures["bfloat16"].rate == pytest.approx(64e6 / (0.2 + 64e-5))
    assert figures["bfloat16"].note == ""


def test_float32_is_measured_however_long_it_takes(clock):
    figures, _ = clock.measure({"float32": 5.0, "bfloat16": 4.0})
    assert figures["float32"].rate == pytest.approx(1e6 / 5.0)
    assert figures["bfloat16"].rate == pytest.approx(1e6 / 4.0)


def test_what_fails_has_the_reason_and_the_next_one_is_the_measure(clock):
    error = NotImplementedError("\n no kernel\nfor it")
    figures, _ = clock.measure({"float32": error, "bfloat16": 1e-3, "float16": 1e-3})
    assert figures["float32"].rate is None
    assert figures["float32"].note == "NotImplementedError: no kernel"
    assert figures["float16"].rate == pytest.approx(1e9)
    assert {size for _, size in clock.done} == {1, 8}
    figures, _ = clock.measure({"float32": MemoryError()})
    assert figures["float32"].note == "MemoryError"


def test_nothing_begins_after_the_time(clock):
    figures, said = clock.measure({"float32": 1e-3, "float16": 1e-3}, until=0.0)
    assert {figure.note for figure in figures.values()} == {NO_TIME}
    assert (clock.done, said) == ([], [])
    figures, _ = clock.measure({"float32": 1e-3, "float16": 1e-3}, until=1e-4)
    assert figures["float32"].rate == pytest.approx(1e9)
    assert figures["float16"].note == NO_TIME


def test_turns_are_bounded(clock):
    clock.measure({"float32": 0.5})
    assert clock.now < 0.5 * 2 + 0.5 + measuring.SECONDS_IN_TURNS + 0.5


def test_float32_has_nothing_to_convert(clock):
    figures, _ = clock.measure({"float32": 1e-3, "float16": 1e-3}, name="cast")
    assert figures["float32"].rate is None
    assert figures["float16"].rate == pytest.approx(1e9)
