"""The accelerators that this PyTorch can use. Importing this file imports PyTorch."""

import sys

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
    if torch.version.hip is not None:
        return rocm.device(properties.name, properties.gcnArchName, properties.total_memory)
    capability = (properties.major, properties.minor)
    return cuda.device(properties.name, capability, properties.total_memory)


def _xpu(index: int) -> Device:
    properties = torch.xpu.get_device_properties(index)
    architecture = oneapi.architecture_of_name(properties.name)
    return oneapi.device(properties.name, architecture, properties.total_memory)
