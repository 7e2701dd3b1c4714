"""Reasons that several kernels share for leaving a layer alone."""

import keras
import tensorflow as tf


def on_cpu_only(layer: keras.Layer) -> str | None:
    """Refuses where TensorFlow has an accelerator, and layers whose weights were exchanged.

    Args:
        layer: Any layer.

    Returns:
        The reason, or None.
    """
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return "this kernel is for CPUs"
    if getattr(layer, "quantization_mode", None) is not None:
        return f"it is quantized ({layer.quantization_mode})"
    if getattr(layer, "lora_enabled", False):
        return "it has LoRA weights"
    return None


def unplain_convolution(layer: keras.Layer) -> str | None:
    """Refuses convolutions that `tf.nn.depthwise_conv2d` does not take as they are.

    Args:
        layer: A two-dimensional convolution.

    Returns:
        The reason, or None.
    """
    if layer.data_format != "channels_last":
        return "its data format is channels_first"
    if len(set(layer.strides)) != 1:
        return "its strides differ"
    if any(rate != 1 for rate in layer.dilation_rate):
        return "it is dilated"
    return None


def low_on_cpu_only(layer: keras.Layer) -> str | None:
    """Refuses what `on_cpu_only` refuses, and layers that do not compute in bfloat16.

    Args:
        layer: Any layer.

    Returns:
        The reason, or None.
    """
    if layer.compute_dtype != "bfloat16":
        return f"it pays in bfloat16 only, and the layer computes in {layer.compute_dtype}"
    return on_cpu_only(layer)
