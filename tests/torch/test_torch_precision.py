"""Which dtype where, decided over made-up devices; what is refused, and how."""

import pytest
import torch

from deepseek_hpf import ConfigError, PrecisionConfig, hardware
from deepseek_hpf.hardware import cuda
from deepseek_hpf.hardware.device import Device, Support
from deepseek_hpf.torch import HybridPrecisionContext, precision
from deepseek_hpf.torch.precision import choose_precision

pytestmark = pytest.mark.pure

CPU = Device("cpu", "intel", "A CPU")
VOLTA, AMPERE = cuda.device("A V100", (7, 0)), cuda.device("An A100", (8, 0))
PASCAL = cuda.device("A P100", (6, 0))


@pytest.fixture
def machine(monkeypatch):
    """Makes this a machine with other devices."""

    def has(*gpus, kind="cuda"):
        monkeypatch.setattr(hardware, "usable_devices", lambda _: [CPU, *gpus])
        monkeypatch.setattr(precision, "_accelerator", lambda: kind if gpus else None)

    return has


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ((AMPERE,), torch.bfloat16),
        ((VOLTA,), torch.float16),
        ((VOLTA, AMPERE), torch.float16),
        ((PASCAL,), torch.float32),
    ],
)
def test_automatic(machine, gpus, expected):
    machine(*gpus)
    choice = choose_precision("auto", PrecisionConfig())
    assert choice.dtypes == {"cpu": torch.float32, "cuda": expected}
    assert choice.reason
    assert choose_precision("auto", PrecisionConfig(), "cuda:0").dtypes == {"cuda": expected}
    assert choose_precision("auto", PrecisionConfig(), torch.device("cpu")).dtypes == {
        "cpu": torch.float32
    }


def test_by_name(machine):
    machine(VOLTA)
    both = choose_precision("fp16", PrecisionConfig())
    assert both.dtypes == {"cpu": torch.float16, "cuda": torch.float16}
    configured = choose_precision("auto", PrecisionConfig(policy="mixed_float16"))
    assert configured.dtypes == both.dtypes
    agreeing = choose_precision("fp32", PrecisionConfig(policy="float32"))
    assert set(agreeing.dtypes.values()) == {torch.float32}


def test_a_dtype_that_the_gpu_lacks(machine):
    machine(VOLTA)
    with pytest.raises(ConfigError, match="A V100 has no bfloat16") as refused:
        choose_precision("bf16", PrecisionConfig())
    assert 'precision_mode="auto"' in str(refused.value)
    assert choose_precision("bf16", PrecisionConfig(), "cpu").dtypes == {"cpu": torch.bfloat16}


def test_a_gpu_of_which_nothing_is_known_is_left_to_pytorch(machine):
    machine(Device("gpu", "apple", "Apple GPU"), kind="mps")
    assert choose_precision("fp16", PrecisionConfig()).dtypes["mps"] == torch.float16
    assert choose_precision("auto", PrecisionConfig()).dtypes["mps"] == torch.float32


def test_a_cpu_emulates_what_it_lacks(machine):
    machine()
    emulating = Device("cpu", "intel", "Old", support={"float16": Support("emulated", "made up")})
    assert not emulating.native("float16")
    assert choose_precision("fp16", PrecisionConfig()).dtypes == {"cpu": torch.float16}


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("xpu")])
def test_a_device_that_is_not_there(machine, device):
    machine()
    with pytest.raises(ConfigError, match="leave `device` out, or use one of: cpu"):
        HybridPrecisionContext("fp16", device=device)


@pytest.mark.parametrize("device", ["gpu", 3.5, object()])
def test_what_is_no_device(machine, device):
    machine()
    with pytest.raises(ConfigError, match=r"must be a torch\.device or its name"):
        HybridPrecisionContext("fp16", device=device)


@pytest.mark.parametrize("mode", ["mixed_float16", "FP16", "", "float32"])
def test_an_unknown_mode(mode):
    with pytest.raises(ConfigError, match="one of 'auto', 'bf16', 'fp16', 'fp32'"):
        HybridPrecisionContext(mode)


@pytest.mark.parametrize("mode", [None, 16, torch.float16])
def test_a_mode_of_another_type(mode):
    with pytest.raises(TypeError, match="must be a string"):
        HybridPrecisionContext(mode)


def test_contradictions():
    with pytest.raises(ConfigError, match="to agree"):
        HybridPrecisionContext("bf16", {"policy": "mixed_float16"})
    with pytest.raises(ConfigError, match="float64"):
        HybridPrecisionContext("auto", {"policy": "float64"})
