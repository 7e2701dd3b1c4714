"""The accelerators that this PyTorch can use. Importing this file imports PyTorch."""

import sys
from typing import Any

import torch

from deepseek_hpf.hardware import cuda, oneapi, rocm
from deepseek_hpf.hardware.device import Device


def accelerators() -> list[Device]:
    """GPUs of the kind that PyTorch, under Keras, puts tensors on.

    On a ROCm build AMD's answer to the name of CUDA.
    """
    kind = _kind_in_use()
    if kind == "cuda" and torch.cuda.is_available():
        return [_cuda(index) for index in range(torch.cuda.device_count())]
    if kind == "xpu" and torch.xpu.is_available():
        return [_xpu(index) for index in range(torch.xpu.device_count())]
    if kind == "mps":
        return [Device("gpu", "apple", "Apple GPU (MPS)")]
    return []


def _kind_in_use() -> str:
    keras = sys.modules.get("keras")
    if keras is not None and keras.backend.backend() == "torch":
        # Keras's choice, by KERAS_TORCH_DEVICE or `keras.device`, shows in where a tensor lands.
        return str(keras.ops.zeros(()).device.type)
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
    return next((kind for kind, module in kinds.items() if module.is_available()), "cpu")


def _cuda(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    memory = properties.total_memory, _free(torch.cuda, index)
    if torch.version.hip is not None:
        return rocm.device(properties.name, properties.gcnArchName, *memory)
    return cuda.device(properties.name, (properties.major, properties.minor), *memory)


def _xpu(index: int) -> Device:
    properties = torch.xpu.get_device_properties(index)
    architecture = oneapi.architecture_of_name(properties.name)
    return oneapi.device(
        properties.name, architecture, properties.total_memory, _free(torch.xpu, index)
    )


def _free(module: Any, index: int) -> int | None:
    """Free memory of the device in use; asking another would start a context on it."""
    if not module.is_initialized() or index != module.current_device():
        return None
    try:
        return int(module.mem_get_info(index)[0])
    except (AttributeError, RuntimeError):  # not with every driver, nor in every version
        return None
