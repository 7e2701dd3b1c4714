"""A model to measure: what the parent sends to the process that measures."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deepseek_hpf.bench.records import BenchSettings


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model to measure. Has to be picklable where it is measured in another process.

    Args:
        model: What it is called.
        target: The factory, `MODULE:FUNCTION`.
        make_model: Calls it.
        make_batch: Given the float32 model, returns `(x, y)` or `(x, y, sample_weight)`.
        settings: How to measure.
        command: What ran it.
    """

    model: str
    target: str
    make_model: Callable[[], Any]
    make_batch: Callable[[Any], tuple[Any, ...]]
    settings: BenchSettings = field(default_factory=BenchSettings)
    command: str = ""
