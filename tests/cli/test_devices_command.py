"""`hpf devices`, over this machine and over made-up ones."""

import json

import keras
import pytest

from deepseek_hpf import hardware
from deepseek_hpf.cli.main import run
from deepseek_hpf.hardware import cpu, cuda
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


def test_table(capsys, made_up, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = output(capsys)
    assert "gpu: 2 x NVIDIA [H100], hopper, 80.0 GiB, 79.0 GiB free" in text
    assert "gpu: NVIDIA V100, volta" in text
    assert "compute capability 9.0 has bfloat16 tensor cores" in text
    assert f'With Keras on {BACKEND}, "auto" is mixed_float16.' in text
    assert "cannot use it" not in text


def test_a_device_that_the_back_end_cannot_use_is_marked(capsys, monkeypatch):
    monkeypatch.setattr(hardware, "devices", lambda: [*cpu.probe(), H100])
    monkeypatch.setattr(hardware, "usable_devices", lambda backend: cpu.probe())
    assert f"Keras's back end, {BACKEND}, cannot use it." in output(capsys)
    report = json.loads(output(capsys, "--json"))
    assert [device["usable"] for device in report["devices"]] == [True, False]
