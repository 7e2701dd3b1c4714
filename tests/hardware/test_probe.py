"""The probe on this machine's CPU, over works that are made small."""

import dataclasses
import importlib

import keras
import numpy as np
import pytest

from deepseek_hpf import hardware
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.hardware import cuda, probing, workloads
from deepseek_hpf.hardware.throughput import NO_TIME, WORKS, Figure
from deepseek_hpf.measurement_cache import MeasurementCache

BACKEND = keras.backend.backend()
running = importlib.import_module(f"deepseek_hpf.hardware.running_{BACKEND}").running
SMALL = {"matmul": (8,), "convolution": (1, 4, 2), "cast": (64,), "copy": (64,)}


@pytest.fixture(autouse=True)
def small_works(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPSEEK_HPF_CACHE", str(tmp_path))
    small = [
        dataclasses.replace(work, sizes=(SMALL[work.name],) * 3) for work in workloads.WORKLOADS
    ]
    monkeypatch.setattr(probing, "WORKLOADS", small)


@pytest.fixture
def measured(monkeypatch):
    """Makes the figures up; the list of what was measured grows by a work at a time."""
    calls = []

    def measure(workload, dtypes, first, until, say):
        calls.append(workload.name)
        return {dtype: Figure(float(len(calls)), "made up") for dtype in dtypes}

    monkeypatch.setattr(probing, "measure", measure)
    return calls


def test_all_figures_of_three_formats():
    said = []
    found = hardware.probe(time_budget=600.0, progress=said.append)
    assert (found.device, found.backend) == (hardware.devices()[0].name, BACKEND)
    assert [each.dtype for each in found.throughputs] == ["float32", "bfloat16", "float16"]
    for each in found.throughputs:
        for work in WORKS:
            if (each.dtype, work) != ("float32", "cast"):
                assert each.of(work).rate > 0, (each.dtype, work, each.of(work).note)
    assert found.ratio("bfloat16", "convolution") > 0
    assert said[0] == "matmul, float32"
    assert {line.partition(",")[0] for line in said} == set(WORKS)


def test_a_second_call_finds_the_first_ones_figures(measured, monkeypatch):
    first = hardware.probe(dtypes=["float32"])
    assert measured == list(WORKS)
    assert hardware.probe(dtypes=("float32", "float32")) == first
    assert len(measured) == 4
    again = hardware.probe(dtypes=["float32"], refresh=True)
    assert again != first
    assert hardware.probe(dtypes=["float32"]) == again
    assert len(measured) == 8
    hardware.probe(dtypes=["float16"])
    assert len(measured) == 12
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    hardware.probe(dtypes=["float32"])
    assert len(measured) == 16


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "key": {}, "value": {}}', "nonsense"])
def test_a_damaged_file_is_measured_again(text, measured, tmp_path):
    hardware.probe()
    (file,) = tmp_path.rglob("*.json")
    file.write_text(text)
    again = hardware.probe()
    assert len(measured) == 8
    (entry,) = MeasurementCache(probing.KIND).entries()
    assert entry[1] == again.to_dict()


def test_a_value_of_another_shape_is_measured_again(measured):
    hardware.probe()
    cache = MeasurementCache(probing.KIND)
    ((key, _),) = cache.entries()
    cache.put(key, {"device": "?", "backend": BACKEND, "throughputs": 3})
    hardware.probe()
    assert len(measured) == 8


def test_without_time_nothing_is_measured_and_nothing_kept(tmp_path):
    found = hardware.probe(time_budget=0.0)
    assert all(each.of(work).rate is None for each in found.throughputs for work in WORKS)
    assert list(tmp_path.rglob("*.json")) == []


def test_what_the_time_did_not_suffice_for_is_measured_by_the_next_call(monkeypatch):
    calls = []

    def measure(workload, dtypes, first, until, say):
        calls.append(workload.name)
        late = len(calls) in (3, 4)
        return {dtype: Figure(None, NO_TIME) if late else Figure(5.0) for dtype in dtypes}

    monkeypatch.setattr(probing, "measure", measure)
    first = hardware.probe()
    assert first.of("float16").convolution.rate == 5.0
    assert first.of("float16").cast == first.of("float32").copy == Figure(None, NO_TIME)
    second = hardware.probe()
    assert calls[4:] == ["cast", "copy"]
    assert all(each.of(work).rate == 5.0 for each in second.throughputs for work in WORKS)
    assert hardware.probe() == second
    assert len(calls) == 6


def test_a_format_that_the_back_end_cannot_do_has_the_reason():
    # Some can, by conversion; none may raise.
    found = hardware.probe(dtypes=["float32", "float64", "float8_e4m3fn"])
    for dtype in ("float64", "float8_e4m3fn"):
        for work in WORKS:
            figure = found.of(dtype).of(work)
            assert figure.rate or figure.note
    if BACKEND == "jax":  # without x64
        assert "float32" in found.of("float64").matmul.note


def test_a_device_can_be_named(measured):
    (cpu,) = [device for device in hardware.usable_devices(BACKEND) if device.kind == "cpu"]
    assert hardware.probe(cpu, ["float32"]).device == cpu.name
    # Free memory changes; it is the same device.
    other = dataclasses.replace(cpu, memory_free=1)
    assert hardware.probe(other, ["float32"]) == hardware.probe(cpu, ["float32"])


def test_a_device_that_is_not_preferred_is_measured_in_its_scope(monkeypatch):
    cpu, gpu = hardware.usable_devices(BACKEND)[0], cuda.device("NVIDIA Made Up", (9, 0))
    scopes = []
    whole = keras.device
    monkeypatch.setattr(probing, "usable_devices", lambda backend: [cpu, gpu])
    monkeypatch.setattr(keras, "device", lambda name: scopes.append(name) or whole(name))
    assert hardware.probe(cpu, ["float32"]).of("float32").matmul.rate > 0
    assert scopes == ["cpu:0"]


def test_a_device_that_the_back_end_is_kept_from_is_refused(monkeypatch):
    cpu, gpu = hardware.usable_devices(BACKEND)[0], cuda.device("NVIDIA Made Up", (9, 0))

    def refuse(name):
        raise RuntimeError("unknown backend")

    monkeypatch.setattr(probing, "usable_devices", lambda backend: [cpu, gpu])
    monkeypatch.setattr(keras, "device", refuse)
    with pytest.raises(ConfigError, match=r"'cpu:0'.*unknown backend"):
        hardware.probe(cpu)


@pytest.mark.parametrize("device", [cuda.device("NVIDIA Made Up", (9, 0)), "cpu", 3])
def test_a_device_that_cannot_be_used_is_refused(device):
    with pytest.raises(ConfigError, match="Expected `device` to be one that the back end can use"):
        hardware.probe(device)


@pytest.mark.parametrize(
    ("dtypes", "words"),
    [
        (["float23"], "floating-point format"),
        (["float32", "int8"], "int8"),
        ("float32", "names of formats"),
        ([], "names of formats"),
    ],
)
def test_dtypes_that_cannot_be_measured_are_refused(dtypes, words):
    with pytest.raises(ConfigError, match=words):
        hardware.probe(dtypes=dtypes)


def test_a_back_end_that_does_not_train_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(ConfigError, match="KERAS_BACKEND='numpy'"):
        hardware.probe()


def test_the_first_accelerator_is_preferred():
    cpu, gpu = hardware.devices()[0], cuda.device("NVIDIA Made Up", (9, 0))
    assert hardware.preferred_device([cpu, gpu]) is gpu
    assert hardware.preferred_device([cpu]) is cpu


def test_gradients_are_taken_where_they_are_asked_for():
    @keras.ops.custom_gradient
    def function(x):
        def backward(*arguments, upstream=None):
            raise OverflowError("no gradient")

        return x * 2.0, backward

    x = keras.ops.convert_to_tensor(np.random.default_rng().random((3,), "float32"))
    running(function, [x], with_gradients=False)()
    with pytest.raises(Exception, match="no gradient"):
        running(function, [x], with_gradients=True)()


@pytest.mark.parametrize("work", workloads.WORKLOADS, ids=lambda work: work.name)
def test_what_is_counted(work):
    size = SMALL[work.name]
    counted = {name: work.amount(name, size) for name in ("float32", "float16")}
    expected = {
        "matmul": (3 * 2 * 8 * 8 * 8,) * 2,
        # 16 positions, 9 taps, 2 channels in and out.
        "convolution": (3 * 2 * 16 * 9 * 2 * 2,) * 2,
        # 64 numbers there and back, read and written.
        "cast": (2 * 64 * (4 + 4), 2 * 64 * (4 + 2)),
        "copy": (2 * 64 * 4, 2 * 64 * 2),
    }
    assert tuple(counted.values()) == expected[work.name]
    amounts = [work.amount("float32", each) for each in work.sizes]
    assert amounts == sorted(set(amounts))
