"""The accelerators that this PyTorch can use. Importing this file imports PyTorch."""

import torch

from deepseek_hpf.hardware import cuda, oneapi, rocm
from deepseek_hpf.hardware.device import Device


def accelerators() -> list[Device]:
    """GPUs that PyTorch can use; on a ROCm build they answer to the name of CUDA."""
    if torch.cuda.is_available():
        return [_cuda(index) for index in range(torch.cuda.device_count())]
    if torch.xpu.is_available():
        return [_xpu(index) for index in range(torch.xpu.device_count())]
    if torch.backends.mps.is_available():
        return [Device("gpu", "apple", "Apple GPU (MPS)")]
    return []


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
