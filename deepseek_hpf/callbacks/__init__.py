"""Keras callbacks, one a file; the work is elsewhere."""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.callbacks.backup_and_restore import BackupAndRestore as BackupAndRestore
    from deepseek_hpf.callbacks.batch_size_scheduler import BatchSizeScheduler as BatchSizeScheduler
    from deepseek_hpf.callbacks.dynamic_precision import DynamicPrecision as DynamicPrecision
    from deepseek_hpf.callbacks.memory_goal import MemoryGoal as MemoryGoal
    from deepseek_hpf.callbacks.precision_overrides import (
        PrecisionOverrides as PrecisionOverrides,
    )
    from deepseek_hpf.callbacks.precision_profiler import PrecisionProfiler as PrecisionProfiler

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BackupAndRestore": "deepseek_hpf.callbacks.backup_and_restore:BackupAndRestore",
        "BatchSizeScheduler": "deepseek_hpf.callbacks.batch_size_scheduler:BatchSizeScheduler",
        "DynamicPrecision": "deepseek_hpf.callbacks.dynamic_precision:DynamicPrecision",
        "MemoryGoal": "deepseek_hpf.callbacks.memory_goal:MemoryGoal",
        "PrecisionOverrides": "deepseek_hpf.callbacks.precision_overrides:PrecisionOverrides",
        "PrecisionProfiler": "deepseek_hpf.callbacks.precision_profiler:PrecisionProfiler",
    },
)
