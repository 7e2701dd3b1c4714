"""What "auto" chooses, over made-up devices."""

import re

import pytest

from deepseek_hpf.hardware import cpu, cuda, oneapi, rocm, tpu
from deepseek_hpf.hardware.device import Device
from deepseek_hpf.scheduling.auto import choose_policy

pytestmark = pytest.mark.pure

BACKENDS = ("tensorflow", "jax", "torch")


def processor(*flags):
    return Device("cpu", "made up", "A CPU", support=cpu.support(frozenset(flags)))


BF16_CPU = processor("avx512_bf16", "avx512_fp16")
OLD_CPU = processor("avx2")
A100 = cuda.device("A100", (8, 0))
H100 = cuda.device("H100", (9, 0))
V100 = cuda.device("V100", (7, 0))
T4 = cuda.device("T4", (7, 5))
P100 = cuda.device("P100", (6, 0))
NAMELESS = cuda.device("GPU", None)
MI250 = rocm.device("MI250X", "gfx90a")
VEGA = rocm.device("Vega", "gfx906")
MAX = oneapi.device("Max", "xe-hpc")
INTEGRATED = oneapi.device("UHD", "")
TPU = tpu.device("TPU v4")
APPLE = Device("gpu", "apple", "Apple GPU (MPS)")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("accelerators", "name"),
    [
        ([A100], "mixed_bfloat16"),
        ([H100], "mixed_bfloat16"),
        ([V100], "mixed_float16"),
        ([T4], "mixed_float16"),
        ([P100], "float32"),
        ([NAMELESS], "float32"),
        ([MI250], "mixed_bfloat16"),
        ([VEGA], "float32"),
        ([MAX], "mixed_bfloat16"),
        ([INTEGRATED], "float32"),
        ([TPU], "mixed_bfloat16"),
        ([APPLE], "float32"),
        ([A100, H100], "mixed_bfloat16"),
        ([A100, V100], "mixed_float16"),
        ([V100, A100], "mixed_float16"),
        ([A100, P100], "float32"),
        # A TPU has no native float16 and a T4 no bfloat16: nothing is common but float32.
        ([TPU, T4], "float32"),
    ],
)
def test_accelerators_decide(accelerators, name, backend):
    for host in (BF16_CPU, OLD_CPU):
        assert choose_policy([host, *accelerators], backend).name == name
        assert choose_policy([*accelerators, host], backend).name == name


@pytest.mark.parametrize("backend", [*BACKENDS, "openvino"])
def test_cpu(backend):
    expected = "mixed_bfloat16" if backend in ("tensorflow", "torch") else "float32"
    assert choose_policy([BF16_CPU], backend).name == expected
    assert choose_policy([OLD_CPU], backend).name == "float32"


@pytest.mark.parametrize("flags", [["amx_bf16"], ["avx512_bf16"], ["bf16"], ["FEAT_BF16"]])
def test_flags_of_native_bfloat16(flags):
    assert choose_policy([processor(*flags)], "tensorflow").name == "mixed_bfloat16"


@pytest.mark.parametrize("flags", [[], ["avx512_fp16"], ["asimdhp"], ["f16c", "avx512f"]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_float16_on_a_cpu(flags, backend):
    assert choose_policy([processor(*flags)], backend).name == "float32"


def test_no_device_at_all():
    assert choose_policy([], "tensorflow").name == "float32"


@pytest.mark.parametrize(
    ("devices", "backend", "words"),
    [
        ([A100], "jax", "A100 multiplies in bfloat16 .*capability 8.0"),
        ([V100], "torch", "V100 multiplies in float16 .*7.0.*bfloat16 is not native on V100"),
        ([A100, V100], "torch", "All 2 accelerators .*float16.*not native on V100"),
        ([A100, P100], "torch", "P100.*6.0.*not every accelerator"),
        ([P100], "torch", "P100 multiplies natively neither in bfloat16 .* nor in float16"),
        ([BF16_CPU], "tensorflow", "avx512_bf16.*TensorFlow's CPU kernels gain"),
        ([BF16_CPU], "jax", "avx512_bf16.*JAX's CPU kernels are not known to gain"),
        ([BF16_CPU], "torch", "avx512_bf16.*PyTorch's CPU kernels gain"),
        ([OLD_CPU], "tensorflow", "A CPU does not multiply in bfloat16: it has no instr"),
        ([APPLE], "torch", "Apple GPU .*nothing is known"),
    ],
)
def test_reason_is_one_sentence_that_says_why(devices, backend, words):
    reason = choose_policy(devices, backend).reason
    assert re.search(words, reason), reason
    assert reason[0].isupper()
    assert reason.endswith(".")
    assert not re.search(r"[.!?] [A-Z]", reason), reason
