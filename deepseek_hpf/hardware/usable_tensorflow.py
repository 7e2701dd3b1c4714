"""The accelerators that this TensorFlow can use. Importing this file imports TensorFlow."""

import tensorflow as tf

from deepseek_hpf.hardware import cuda, rocm, tpu
from deepseek_hpf.hardware.device import Device


def accelerators() -> list[Device]:
    """GPUs and TPUs that TensorFlow sees and that were not hidden from it; starts no runtime."""
    rocm_build = bool(tf.sysconfig.get_build_info().get("is_rocm_build"))
    return [_gpu(entry, rocm_build) for entry in tf.config.get_visible_devices("GPU")] + [
        tpu.device(entry.name) for entry in tf.config.get_visible_devices("TPU")
    ]


def _gpu(entry: object, rocm_build: bool) -> Device:
    details = tf.config.experimental.get_device_details(entry)
    name = details.get("device_name") or str(getattr(entry, "name", "GPU"))
    if rocm_build:
        return rocm.device(name, str(details.get("compute_capability", "")))
    capability = details.get("compute_capability")
    if capability is None:
        # A pluggable device of another vendor, of which nothing is known here.
        return Device("gpu", "unknown", name)
    return cuda.device(name, (int(capability[0]), int(capability[1])))
