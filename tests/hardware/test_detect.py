"""What the machine has, and what the running back end can use of it."""

import copy
import os
import pickle
import subprocess
import sys
import types

import keras
import pytest

from deepseek_hpf import hardware
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.hardware import cuda, oneapi, rocm
from deepseek_hpf.hardware.device import Device, Support

BACKEND = keras.backend.backend()
GPU = cuda.device("NVIDIA Made Up", (9, 0), 100, 50)


def test_devices_begin_with_the_cpu():
    found = hardware.devices()
    assert [device.kind for device in found].count("cpu") == 1
    assert found[0].kind == "cpu"
    assert all(set(device.support) >= {"float32", "bfloat16", "float16"} for device in found)


def test_a_gpu_that_the_back_end_cannot_use_is_not_usable(monkeypatch):
    """The tests run with GPUs hidden: one in the machine must not decide."""
    monkeypatch.setattr(cuda, "probe", lambda: [GPU])
    assert GPU in hardware.devices()
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "-1").strip("-1"):
        assert [device.kind for device in hardware.usable_devices(BACKEND)] == ["cpu"]


def test_a_loaded_framework_completes_what_the_driver_files_do_not_tell(monkeypatch):
    unknown, other = cuda.device(GPU.name, None), cuda.device("NVIDIA Other", None)
    monkeypatch.setattr(cuda, "probe", lambda: [unknown, other])
    module = types.SimpleNamespace(accelerators=lambda: [GPU])
    monkeypatch.setitem(sys.modules, f"deepseek_hpf.hardware.usable_{BACKEND}", module)
    for name in {"tensorflow", "jax", "torch"} - {BACKEND}:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert hardware.devices()[1:] == [GPU, other]


def test_a_loaded_framework_tells_the_memory_and_the_name(monkeypatch):
    by_bus = oneapi.device_from_pci("0x0bd5")
    told = oneapi.device("Intel(R) Data Center GPU Max 1550", "xe-hpc", 2**36, 2**35)
    other = oneapi.device("Intel(R) Arc(TM) B580 Graphics", "xe2", 2**33)
    monkeypatch.setattr(cuda, "probe", list)
    monkeypatch.setattr(rocm, "probe", list)
    monkeypatch.setattr(oneapi, "probe", lambda: [by_bus])
    module = types.SimpleNamespace(accelerators=lambda: [other, GPU, told])
    monkeypatch.setitem(sys.modules, f"deepseek_hpf.hardware.usable_{BACKEND}", module)
    for name in {"tensorflow", "jax", "torch"} - {BACKEND}:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert hardware.devices()[1:] == [told]


def test_a_back_end_that_is_not_loaded_is_not_loaded_by_asking(monkeypatch):
    monkeypatch.delitem(sys.modules, BACKEND)
    with pytest.raises(ConfigError, match=f"framework is loaded.*Received: backend='{BACKEND}'"):
        hardware.usable_devices(BACKEND)
    assert BACKEND not in sys.modules


def test_an_unknown_back_end_has_the_cpu():
    assert [device.kind for device in hardware.usable_devices("numpy")] == ["cpu"]


def test_a_framework_that_cannot_list_its_devices_has_the_cpu(monkeypatch, caplog):
    def fail():
        raise RuntimeError("driver too old")

    module = types.SimpleNamespace(accelerators=fail)
    monkeypatch.setitem(sys.modules, f"deepseek_hpf.hardware.usable_{BACKEND}", module)
    assert [device.kind for device in hardware.usable_devices(BACKEND)] == ["cpu"]
    assert "driver too old" in caplog.text


def test_the_machine_is_asked_without_any_framework():
    code = (
        "import sys; from deepseek_hpf import hardware; hardware.devices(); "
        "print(*sorted({'keras', 'tensorflow', 'jax', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_device_is_a_value():
    equal = cuda.device("NVIDIA Made Up", (9, 0), 100, 50)
    assert equal == GPU
    assert len({GPU, equal}) == 1
    assert cuda.device("NVIDIA Made Up", (8, 0), 100, 50) != GPU
    for same in (pickle.loads(pickle.dumps(GPU)), copy.deepcopy(GPU), copy.copy(GPU)):
        assert same == GPU
    mine = {"float32": Support("native", "it is")}
    device = Device("cpu", "unknown", "CPU", support=mine)
    mine.clear()
    assert device.native("float32")
    with pytest.raises(TypeError):
        device.support["float32"] = Support("none", "no")
    assert not device.of("bfloat16")


@pytest.mark.backend("tensorflow")
def test_tensorflow_gpus(monkeypatch):
    import tensorflow as tf

    from deepseek_hpf.hardware import usable_tensorflow

    details = {
        "cuda": {"device_name": "NVIDIA H200", "compute_capability": (9, 0)},
        "other": {},
    }

    def visible(kind):
        return [types.SimpleNamespace(name=name) for name in details] if kind == "GPU" else []

    monkeypatch.setattr(tf.config, "get_visible_devices", visible)
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda entry: details[entry.name]
    )
    nvidia, other = usable_tensorflow.accelerators()
    assert (nvidia.name, nvidia.compute_capability) == ("NVIDIA H200", (9, 0))
    assert (other.vendor, other.name) == ("unknown", "other")
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"is_rocm_build": True})
    details["cuda"] = {"device_name": "MI300X", "compute_capability": "gfx942"}
    assert usable_tensorflow.accelerators()[0].architecture == "gfx942"


@pytest.mark.backend("jax")
def test_jax_devices(monkeypatch):
    import jax

    from deepseek_hpf.hardware import usable_jax

    entries = [
        {"platform": "cpu", "device_kind": "cpu"},
        {"platform": "gpu", "device_kind": "NVIDIA H200", "compute_capability": "9.0"},
        {"platform": "gpu", "device_kind": "MI300X", "compute_capability": "gfx942"},
        {"platform": "tpu", "device_kind": "TPU v5p"},
        {"platform": "xpu", "device_kind": "Intel(R) Data Center GPU Max 1550"},
        {"platform": "quantum", "device_kind": "Q"},
    ]
    monkeypatch.setattr(
        jax, "local_devices", lambda: [types.SimpleNamespace(**entry) for entry in entries]
    )
    found = usable_jax.accelerators()
    assert [device.vendor for device in found] == ["nvidia", "amd", "google", "intel", "unknown"]
    assert [device.native("bfloat16") for device in found] == [True, True, True, True, False]
    assert [device.memory_total for device in found] == [None] * 5
    stats = {"bytes_limit": 2**34, "bytes_in_use": 2**33}
    entries[3]["memory_stats"] = lambda: stats
    chip = usable_jax.accelerators()[2]
    assert (chip.memory_total, chip.memory_free) == (2**34, 2**33)
    stats |= {"bytes_limit": -1, "bytes_in_use": -1}
    assert usable_jax.accelerators()[2].memory_total is None
    entries[3]["memory_stats"] = lambda: None
    assert usable_jax.accelerators()[2].memory_total is None
    with jax.default_device(jax.devices("cpu")[0]):
        assert usable_jax.accelerators() == []


@pytest.mark.backend("torch")
def test_torch_gpus(monkeypatch):
    import torch

    from deepseek_hpf.hardware import usable_torch

    tensor = types.SimpleNamespace(device=types.SimpleNamespace(type="cuda"))
    monkeypatch.setattr(keras.ops, "zeros", lambda shape: tensor)
    properties = types.SimpleNamespace(
        name="A GPU", major=8, minor=6, total_memory=2**34, gcnArchName="gfx90a:sramecc+"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    found = usable_torch.accelerators()
    assert [device.compute_capability for device in found] == [(8, 6), (8, 6)]
    assert [(d.memory_total, d.memory_free) for d in found] == [(2**34, None)] * 2
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (2**33 + index, 2**34))
    # The one in use only: the other would be started by asking.
    assert [d.memory_free for d in usable_torch.accelerators()] == [None, 2**33 + 1]
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert [device.architecture for device in usable_torch.accelerators()] == ["gfx90a"] * 2
    tensor.device.type = "mps"
    assert [device.vendor for device in usable_torch.accelerators()] == ["apple"]
    tensor.device.type = "xpu"
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    intel = types.SimpleNamespace(name="Intel(R) Arc(TM) B580 Graphics", total_memory=2**33)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: intel)
    assert [device.architecture for device in usable_torch.accelerators()] == ["xe2"]
    # Keras was told to stay on the CPU (KERAS_TORCH_DEVICE): the GPU is not in use.
    tensor.device.type = "cpu"
    assert usable_torch.accelerators() == []
    monkeypatch.delitem(sys.modules, "keras")
    assert [device.vendor for device in usable_torch.accelerators()] == ["amd"] * 2
