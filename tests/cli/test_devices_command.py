"""`hpf devices`, over this machine and over made-up ones; the figures are made up."""

import json

import keras
import pytest

from deepseek_hpf import hardware, lazy
from deepseek_hpf.cli.main import run
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.hardware import ProbeResult, cpu, cuda
from deepseek_hpf.hardware.throughput import Figure, Throughput
from deepseek_hpf.policy import MixedPrecisionPolicy

BACKEND = keras.backend.backend()
H100 = cuda.device("NVIDIA [H100]", (9, 0), 80 * 2**30, 79 * 2**30)
V100 = cuda.device("NVIDIA V100", (7, 0))


def output(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        run(["devices", *arguments])
    assert left.value.code in (0, None)
    return capsys.readouterr().out


@pytest.fixture
def made_up(monkeypatch):
    """A machine with two H100, of which the back end uses one, and a V100 it alone knows of."""
    monkeypatch.setattr(hardware, "devices", lambda: [*cpu.probe(), H100, H100])
    monkeypatch.setattr(hardware, "usable_devices", lambda backend: [*cpu.probe(), H100, V100])


@pytest.fixture(autouse=True)
def probed(monkeypatch):
    """Names of the devices that were measured, and whether anew."""
    calls = []

    def probe(device, *, refresh, progress):
        progress("matmul, float32")
        calls.append((device.name, refresh))
        fast, slow = Figure(2e11), Figure(1e10, "stopped: made up")
        none, failed = Figure(None, "nothing to convert"), Figure(None, "NoKernel: made up")
        return ProbeResult(
            device.name,
            BACKEND,
            (
                Throughput("float32", fast, fast, none, fast),
                Throughput("bfloat16", Figure(5e11), slow, fast, failed),
            ),
        )

    monkeypatch.setattr(hardware, "probe", probe)
    return calls


def test_json_of_this_machine(capsys):
    report = json.loads(output(capsys, "--json"))
    policy = MixedPrecisionPolicy()
    assert report["backend"] == BACKEND
    assert report["auto"] == {"policy": policy.name, "reason": policy.reason}
    first = report["devices"][0]
    assert (first["kind"], first["usable"]) == ("cpu", True)
    assert first["support"]["float32"]["level"] == "native"
    assert all(entry["reason"] for entry in first["support"].values())


def test_json_of_a_made_up_machine(capsys, made_up):
    report = json.loads(output(capsys, "--json"))
    assert report["auto"]["policy"] == "mixed_float16"
    assert [device["name"] for device in report["devices"][1:]] == [H100.name, H100.name, V100.name]
    assert report["devices"][1]["compute_capability"] == [9, 0]
    assert report["devices"][1]["memory_total"] == 80 * 2**30
    assert report["devices"][3]["memory_total"] is None


def test_the_datasheet_alone(capsys, made_up, monkeypatch, probed):
    monkeypatch.setenv("COLUMNS", "100")
    text = output(capsys, "--no-probe")
    assert "gpu: 2 x NVIDIA [H100], hopper, 80.0 GiB, 79.0 GiB free" in text
    assert "gpu: NVIDIA V100, volta" in text
    assert "compute capability 9.0 has bfloat16 tensor cores" in text
    assert f'With Keras on {BACKEND}, "auto" is mixed_float16.' in text
    assert "cannot use it" not in text
    assert "GFLOP/s" not in text
    assert probed == []
    assert json.loads(output(capsys, "--json", "--no-probe"))["devices"][1]["measured"] is None


def test_datasheet_and_figures_side_by_side(capsys, made_up, monkeypatch, probed):
    monkeypatch.setenv("COLUMNS", "100")
    text = output(capsys)
    assert [name for name, refresh in probed if not refresh] == [
        device.name for device in (*cpu.probe(), H100, V100)
    ]
    (row,) = [
        line.replace(" ", "").split("│")[1:-1]
        for line in text.partition("H100")[2].partition("V100")[0].splitlines()
        if line.startswith("│ bfloat16")
    ]
    assert row == ["bfloat16", "native", "500(2.50x)", "10(0.05x)", "200", "none"]
    for line in (
        "gpu: 2 x NVIDIA [H100], hopper, 80.0 GiB, 79.0 GiB free",
        "native: compute capability 9.0 has bfloat16 tensor cores",
        "bfloat16, convolution: stopped: made up",
        "bfloat16, copy: NoKernel: made up",
        f"Measured with Keras on {BACKEND}",
        f'With Keras on {BACKEND}, "auto" is mixed_float16.',
    ):
        assert line in text
    assert "nothing to convert" not in text


def test_figures_in_json(capsys, made_up, probed):
    report = json.loads(output(capsys, "--json", "--refresh"))
    assert all(refresh for _, refresh in probed)
    measured = report["devices"][1]["measured"]["bfloat16"]
    assert measured["matmul"] == {
        "rate": 5e11,
        "unit": "FLOP/s",
        "ratio_to_float32": 2.5,
        "note": "",
    }
    assert (measured["copy"]["rate"], measured["copy"]["ratio_to_float32"]) == (None, None)
    assert report["trouble"] is None


def test_a_device_that_refuses_is_shown_without_figures(capsys, monkeypatch):
    def probe(device, **arguments):
        raise ConfigError("made up")

    monkeypatch.setattr(hardware, "probe", probe)
    report = json.loads(output(capsys, "--json"))
    assert [device["measured"] for device in report["devices"]] == [None] * len(report["devices"])
    assert report["devices"][0]["usable"]


def test_a_device_that_the_back_end_cannot_use_is_marked(capsys, monkeypatch):
    monkeypatch.setattr(hardware, "devices", lambda: [*cpu.probe(), H100])
    monkeypatch.setattr(hardware, "usable_devices", lambda backend: cpu.probe())
    assert f"Keras's back end, {BACKEND}, cannot use it." in output(capsys)
    report = json.loads(output(capsys, "--json"))
    assert [device["usable"] for device in report["devices"]] == [True, False]


@pytest.mark.parametrize(
    "error", [ConfigError("no such\n back end"), ImportError("libcuda.so.1"), RuntimeError()]
)
def test_without_a_back_end_there_is_the_datasheet(error, capsys, monkeypatch, probed):
    def fail(name):
        raise error

    monkeypatch.setattr(lazy, "import_with_backend", fail)
    monkeypatch.setenv("COLUMNS", "200")
    told = " ".join(str(error).split()) or "RuntimeError"
    text = output(capsys)
    assert f"No back end to measure with. {told}\n" in text
    assert "every CPU computes in it" in text
    assert '"auto"' not in text
    report = json.loads(output(capsys, "--json"))
    assert (report["backend"], report["auto"], report["trouble"]) == (None, None, told)
    assert report["devices"][0]["support"]["float32"]["level"] == "native"
    assert not report["devices"][0]["usable"]
    assert probed == []


def test_a_back_end_that_does_not_train(capsys, monkeypatch, probed):
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    assert "numpy, which does not train" in " ".join(output(capsys).split())
    assert probed == []
