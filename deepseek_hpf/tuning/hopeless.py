"""Which formats cannot make a model faster, by what the hardware was measured to do in them."""

import math

import keras

from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.hardware import Device, ProbeResult
from deepseek_hpf.hardware.throughput import NO_TIME, Work

# Times float32's speed. Half the bytes make what does not multiply at most twice as fast, so that a
# model which multiplies for a fifth of its time comes out even at a third: 0.2 / (1/3) + 0.8 / 2.
# Most multiply for longer, and what is measured is never left out for a little.
CLEARLY_SLOWER = 1 / 3

_VERBS: dict[Work, str] = {"matmul": "multiplies matrices", "convolution": "convolves"}


def why_hopeless(
    found: ProbeResult, device: Device, dtype: str, convolution_share: float
) -> str | None:
    """Why a format cannot make a model faster.

    It cannot if products of matrices and convolutions, whichever of them the model has, are clearly
    slower than in float32; or if the convolutions alone are so slow that their share of the work
    takes longer than all of it should. What was not measured is judged by the datasheet.

    Args:
        found: What was measured; float32 has to be among it.
        device: What is known of the device.
        dtype: Name of the format.
        convolution_share: How much of the multiplying is convolution, at least; see
            `convolution_share`.

    Returns:
        One phrase that names the figures; None where the format may gain.

    Example:
        >>> from deepseek_hpf.hardware import Device, ProbeResult, Support
        >>> from deepseek_hpf.hardware.throughput import Figure, Throughput
        >>> device = Device("cpu", "amd", "A CPU", support={"float16": Support("native", "yes")})
        >>> fast, slow, none = Figure(2e11), Figure(1e10), Figure(None)
        >>> found = ProbeResult("A CPU", "tensorflow", (
        ...     Throughput("float32", fast, fast, none, none),
        ...     Throughput("float16", fast, slow, none, none),
        ... ))
        >>> why_hopeless(found, device, "float16", convolution_share=0.9)
        "A CPU convolves in float16 at 0.05 times float32's speed (10 against 200 GFLOP/s)"
        >>> why_hopeless(found, device, "float16", convolution_share=0.0)
    """
    support = device.of(dtype)
    if support.level == "none":
        return f"{device.name} cannot compute in it: {support.reason}"
    works: list[Work] = ["matmul", "convolution"] if convolution_share > 0 else ["matmul"]
    ratios: dict[Work, float] = {}
    for work in works:
        ratio = found.ratio(dtype, work)
        if ratio is None:
            return _without_figure(found, device, dtype, work)
        ratios[work] = ratio
    slow = [work for work in works if ratios[work] < CLEARLY_SLOWER]
    alone = CLEARLY_SLOWER * convolution_share
    if slow == works or ratios.get("convolution", math.inf) < alone:
        return f"{device.name} " + " and ".join(_told(found, dtype, work) for work in slow)
    return None


def convolution_share(model: keras.Model) -> float:
    """How much of a model's multiplying is convolution, judged by its weights.

    A convolution uses a weight at every position, a dense layer at one or at as many: the share of
    the work is at least the share of the weights.

    Args:
        model: A built model.

    Returns:
        From 0, without convolutions, to 1.

    Example:
        >>> import keras
        >>> from deepseek_hpf.tuning.hopeless import convolution_share
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3)])
        >>> convolution_share(model)
        1.0
    """
    factors = {id(weight): weight for weight in model.trainable_weights if len(weight.shape) > 1}
    convolving = {
        id(weight)
        for walked in walk(model)
        if _convolves(walked.layer)
        for weight in walked.layer.trainable_weights
    }
    total = sum(_size(weight) for weight in factors.values())
    share = sum(_size(weight) for key, weight in factors.items() if key in convolving)
    return share / total if total else 0.0


def _convolves(layer: keras.Layer) -> bool:
    bases = [base for base in type(layer).__mro__ if base.__module__.startswith("keras.")]
    return any("Conv" in base.__name__ for base in bases)


def _without_figure(found: ProbeResult, device: Device, dtype: str, work: Work) -> str | None:
    figure, base = found.of(dtype).of(work), found.of("float32").of(work)
    if base.rate is not None and figure.note and figure.note != NO_TIME:
        return f"{device.name} failed at it ({work}): {figure.note}"
    support = device.of(dtype)
    if support.level == "native":
        return None
    return f"{device.name} is not known to be fast at it: {support.reason}"


def _told(found: ProbeResult, dtype: str, work: Work) -> str:
    rate, base = found.of(dtype).of(work).rate or 0.0, found.of("float32").of(work).rate or 1.0
    return (
        f"{_VERBS[work]} in {dtype} at {rate / base:.2g} times float32's speed "
        f"({rate / 1e9:.0f} against {base / 1e9:.0f} GFLOP/s)"
    )


def _size(weight: keras.Variable) -> int:
    return math.prod(weight.shape)
