"""Made-up results of benchmarks, for the tests of what is said of them."""

from deepseek_hpf.bench.records import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    OURS,
    BenchSettings,
    ContenderResult,
    Machine,
    ModelResult,
)


def machine(backend: str = "tensorflow", **changes: object) -> Machine:
    values = {
        "backend": backend,
        "devices": ("Made-up CPU, 2 cores",),
        "formats": {"bfloat16": "native (it has avx512_bf16)", "float16": "none (made up)"},
        "system": "Linux 1.0, Python 3.11",
        "versions": {"keras": "3.0"},
    }
    return Machine(**{**values, **changes})


def result(model: str = "MLP", ours: float = 0.5, **changes: object) -> ModelResult:
    """float32 takes 1, then 2 seconds; bfloat16 0.8 times that, ours `ours` times that."""
    main = {
        FLOAT32: (1.0, 2.0),
        BFLOAT16: (0.8, 1.6),
        OURS: (ours, 2 * ours),
    }
    contenders = (
        ContenderResult(name=FLOAT32, first_step_seconds=3.0, peak_memory=64 * 2**20),
        ContenderResult(name=BFLOAT16),
        ContenderResult(name=FLOAT16, note="slow"),
        ContenderResult(name=OURS, note="a plan, tuned in 7 s", tuning_seconds=7.0),
    )
    values = {
        "model": model,
        "target": f"module:{model.lower()}",
        "settings": BenchSettings(),
        "machine": machine(),
        "when": "2026-11-24",
        "command": "hpf bench --suite",
        "parameters": 1234567,
        "input_shape": "16 × 784",  # noqa: RUF001
        "contenders": contenders,
        "turns": (main, {FLOAT32: (1.0,), FLOAT16: (4.0,)}),
    }
    return ModelResult(**{**values, **changes})


def failed(model: str = "VGG", reason: str = "out of memory") -> ModelResult:
    return result(model, contenders=(), turns=(), parameters=None, input_shape="", failure=reason)
