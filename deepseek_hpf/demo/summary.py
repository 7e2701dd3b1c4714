"""The comparison in words and figures: one source for the terminal and for the page."""

import dataclasses
import json
import math
from typing import NamedTuple

from deepseek_hpf.demo.records import Comparison, RunResult, RunStart

NOT_KNOWN = "–"  # noqa: RUF001


class Row(NamedTuple):
    """A line of the table: what it is, and what it is in each run."""

    name: str
    baseline: str
    policy: str


def run_name(start: RunStart, *, is_baseline: bool) -> str:
    """Returns what a run is called: its Keras policy, and "guarded" where that alone is no news."""
    guarded = not is_baseline and start.policy_name == "float32"
    return "float32, guarded" if guarded else start.policy_name


def run_names(comparison: Comparison) -> tuple[str, str]:
    """Returns what the two runs are called, e.g. `("float32", "mixed_bfloat16")`."""
    return (
        run_name(comparison.baseline.start, is_baseline=True),
        run_name(comparison.policy.start, is_baseline=False),
    )


def table_rows(comparison: Comparison) -> list[Row]:
    """Returns the lines of the table.

    Args:
        comparison: Two finished runs.

    Returns:
        Lines whose figures carry their units.
    """
    baseline, policy = comparison.baseline, comparison.policy
    return [
        Row("Seconds per step", _seconds(baseline), _seconds(policy)),
        Row("Steps a second, as a ratio", "1.00", _or_dash(comparison.speed, "{:.2f}")),
        Row("Test accuracy", _accuracy(baseline), _accuracy(policy)),
        Row("Loss after the last epoch", _loss(baseline), _loss(policy)),
        Row("Peak memory of the process", _memory(baseline), _memory(policy)),
        Row("Dynamic loss scale", _scale(baseline), _scale(policy)),
        Row("Skipped steps", _skipped(baseline), _skipped(policy)),
    ]


def sentences(comparison: Comparison) -> list[str]:
    """Returns what has to be said beside the table: why this policy, and how the runs compare."""
    start = comparison.policy.start
    said = [f"{start.policy_name}: {start.reason}"]
    if start.policy_name == "float32":
        said.append(
            "So both runs compute in float32, the first by plain Keras, the second with the guards "
            "against corrupted steps. Name a policy, such as mixed_bfloat16, to compare that."
        )
    said.append(
        "Both runs began with the same weights, bit for bit, and saw the same images in the same "
        "order."
        if comparison.same_start
        else "The runs did not begin with the same weights, so their losses do not compare."
    )
    return said


def settings_in_words(comparison: Comparison) -> str:
    """Returns one line on the model, the data and the software."""
    settings, start = comparison.settings, comparison.policy.start
    height, width, channels = start.image_shape
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    versions = ", ".join(f"{name} {version}" for name, version in start.versions.items())
    return (
        f"ResNet-20 ({start.parameters:,} parameters) on {settings.dataset}, "
        f"{height} by {width} pixels in {colours}, {settings.epochs} epochs of "
        f"{start.steps_per_epoch} steps, batch size {settings.batch_size}, seed {settings.seed}; "
        f"{versions}."
    )


def to_json(comparison: Comparison) -> str:
    """Returns everything that was measured as JSON; a number that is not finite is null."""
    return json.dumps(_finite(dataclasses.asdict(comparison)), indent=1, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _or_dash(value: float | None, form: str) -> str:
    return NOT_KNOWN if value is None or math.isnan(value) else form.format(value)


def _seconds(run: RunResult) -> str:
    return _or_dash(run.seconds_per_step, "{:.4f} s")


def _accuracy(run: RunResult) -> str:
    return _or_dash(run.test_accuracy, "{:.2%}")


def _loss(run: RunResult) -> str:
    return _or_dash(run.epochs[-1].loss, "{:.4f}")


def _memory(run: RunResult) -> str:
    return _or_dash(run.peak_memory and run.peak_memory / 2**20, "{:,.0f} MiB")


def _scale(run: RunResult) -> str:
    return "off" if run.dynamic_scale is None else f"{run.dynamic_scale:,.6g}"


def _skipped(run: RunResult) -> str:
    return "not counted" if run.skipped_steps is None else f"{run.skipped_steps:,}"
