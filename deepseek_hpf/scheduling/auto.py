"""Which Keras dtype policy `"auto"` stands for: a pure decision over devices."""

from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_hpf.hardware.device import Device

BACKEND_NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
# Back ends whose CPU kernels were measured to gain from a CPU's native bfloat16 with models of all
# kinds (under TensorFlow with this package's kernels). In float32's speed: PyTorch from 1.0
# (MobileNetV2) to 2.1 (an LSTM), JAX from 0.45 (an MLP) to 1.2 (a GPT).
FAST_BFLOAT16_ON_CPU = frozenset({"tensorflow", "torch"})


@dataclass(frozen=True)
class PolicyChoice:
    """A Keras dtype policy and why it was chosen.

    Args:
        name: `"mixed_bfloat16"`, `"mixed_float16"` or `"float32"`.
        reason: One sentence.
    """

    name: str
    reason: str


def choose_policy(devices: Sequence[Device], backend: str) -> PolicyChoice:
    """Chooses the fastest policy that every device in use computes natively.

    Accelerators decide where there are any, since a back end prefers them: bfloat16 if all have it
    (its range is float32's, so nothing overflows), else float16 if all have it (with loss
    scaling), else float32. Without one the CPU decides: bfloat16 where the processor multiplies in
    it and the back end's CPU kernels gain from that, else float32; float16 is never chosen on a
    CPU.

    Args:
        devices: The devices that the back end can use; one that it cannot use must not be among
            them.
        backend: Keras's name of it: `"tensorflow"`, `"jax"` or `"torch"`.

    Returns:
        The choice.

    Example:
        >>> from deepseek_hpf.hardware.device import Device
        >>> choose_policy([Device("cpu", "intel", "An old CPU")], "tensorflow").name
        'float32'
    """
    accelerators = [device for device in devices if device.kind != "cpu"]
    if accelerators:
        return _for_accelerators(accelerators)
    if devices:
        return _for_cpu(devices, backend)
    return PolicyChoice("float32", "No device is known, and float32 is right on all.")


def _for_accelerators(devices: Sequence[Device]) -> PolicyChoice:
    for dtype in ("bfloat16", "float16"):
        lacking = [device for device in devices if not device.native(dtype)]
        if not lacking:
            return PolicyChoice(f"mixed_{dtype}", _shared_reason(devices, dtype))
    worst = lacking[0]
    others = " (not every accelerator in use has it)" if len(lacking) < len(devices) else ""
    return PolicyChoice(
        "float32",
        f"{worst.name} multiplies natively neither in bfloat16 ({worst.of('bfloat16').reason}) "
        f"nor in float16 ({worst.of('float16').reason}){others}.",
    )


def _shared_reason(devices: Sequence[Device], dtype: str) -> str:
    first = devices[0]
    reason = f"{first.name} multiplies in {dtype} ({first.of(dtype).reason})"
    if len({device.name for device in devices}) > 1:
        reason = f"All {len(devices)} accelerators multiply in {dtype} ({first.of(dtype).reason})"
    if dtype == "float16":
        slow = next(device for device in devices if not device.native("bfloat16"))
        reason += f", while bfloat16 is not native on {slow.name} ({slow.of('bfloat16').reason})"
    return reason + "."


def _for_cpu(devices: Sequence[Device], backend: str) -> PolicyChoice:
    cpu = next((d for d in devices if not d.native("bfloat16")), devices[0])
    bfloat16 = cpu.of("bfloat16")
    if bfloat16.level != "native":
        return PolicyChoice(
            "float32", f"{cpu.name} does not multiply in bfloat16: {bfloat16.reason}."
        )
    shown = BACKEND_NAMES.get(backend, backend)
    if backend in FAST_BFLOAT16_ON_CPU:
        return PolicyChoice(
            "mixed_bfloat16",
            f"{cpu.name} multiplies in bfloat16 ({bfloat16.reason}), and {shown}'s CPU kernels "
            "gain from it.",
        )
    return PolicyChoice(
        "float32",
        f"{cpu.name} multiplies in bfloat16 ({bfloat16.reason}), but {shown}'s CPU kernels are not "
        "known to gain from it with every kind of model.",
    )
