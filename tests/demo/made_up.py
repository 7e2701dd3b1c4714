"""Made-up results, for the tests of what is shown."""

import math

from deepseek_hpf.demo.records import Comparison, EpochDone, RunResult, RunSettings, RunStart


def start(policy_name: str = "mixed_bfloat16", **changes: object) -> RunStart:
    values = {
        "policy_name": policy_name,
        "reason": "made up",
        "backend": "tensorflow",
        "versions": {"keras": "3.0"},
        "steps_per_epoch": 3,
        "image_shape": (16, 16, 1),
        "classes": 10,
        "parameters": 1234567,
        "initial_weights": "abc",
    }
    return RunStart(**{**values, **changes})


def result(policy_name: str, seconds: float, **changes: object) -> RunResult:
    epochs = tuple(
        EpochDone(
            epoch=epoch,
            loss=1 / (epoch + 1),
            test_loss=1.5 / (epoch + 1),
            test_accuracy=0.9 + 0.03 * epoch,
            step_seconds=(100 * seconds if epoch == 0 else seconds, seconds, 1.5 * seconds),
        )
        for epoch in range(3)
    )
    values = {
        "start": start(policy_name),
        "epochs": epochs,
        "peak_memory": 512 * 2**20,
        "dynamic_scale": None,
        "skipped_steps": None,
    }
    return RunResult(**{**values, **changes})


def comparison(**changes: object) -> Comparison:
    values = {
        "settings": RunSettings(policy="auto", epochs=3),
        "baseline": result("float32", 0.2),
        "policy": result("mixed_float16", 0.1, dynamic_scale=65536.0, skipped_steps=2),
    }
    return Comparison(**{**values, **changes})


NAN = math.nan
