"""Hybrid-precision training for Keras 3 (TensorFlow, JAX, PyTorch) and plain PyTorch.

The root is lazy (PEP 562): importing it imports no framework, not even Keras.
"""

import sys
from typing import TYPE_CHECKING

from deepseek_hpf.lazy import import_with_backend, lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf import callbacks as callbacks
    from deepseek_hpf import data as data
    from deepseek_hpf import hardware as hardware
    from deepseek_hpf import memory as memory
    from deepseek_hpf import optimizers as optimizers
    from deepseek_hpf.adapters.apply import apply_policy as apply_policy
    from deepseek_hpf.adapters.export import export as export
    from deepseek_hpf.adapters.report import OverrideReport as OverrideReport
    from deepseek_hpf.config import PrecisionConfig as PrecisionConfig
    from deepseek_hpf.config import PrecisionRule as PrecisionRule
    from deepseek_hpf.errors import ConfigError as ConfigError
    from deepseek_hpf.errors import PrecisionError as PrecisionError
    from deepseek_hpf.optimizers import clipping as clipping
    from deepseek_hpf.optimizers.loss_scale_optimizer import (
        LossScaleOptimizer as LossScaleOptimizer,
    )
    from deepseek_hpf.plan import PrecisionPlan as PrecisionPlan
    from deepseek_hpf.policy import MixedPrecisionPolicy as MixedPrecisionPolicy
    from deepseek_hpf.profiler.entry import profile as profile
    from deepseek_hpf.profiler.report import ProfileReport as ProfileReport
    from deepseek_hpf.torch.context import HybridPrecisionContext as HybridPrecisionContext
    from deepseek_hpf.tuning.result import TuningResult as TuningResult
    from deepseek_hpf.tuning.tune import tune as tune

__version__ = "0.1.0"

_exported, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ConfigError": "deepseek_hpf.errors:ConfigError",
        "HybridPrecisionContext": "deepseek_hpf.torch.context:HybridPrecisionContext",
        "LossScaleOptimizer": "deepseek_hpf.optimizers.loss_scale_optimizer:LossScaleOptimizer",
        "MixedPrecisionPolicy": "deepseek_hpf.policy:MixedPrecisionPolicy",
        "OverrideReport": "deepseek_hpf.adapters.report:OverrideReport",
        "PrecisionConfig": "deepseek_hpf.config:PrecisionConfig",
        "PrecisionError": "deepseek_hpf.errors:PrecisionError",
        "PrecisionPlan": "deepseek_hpf.plan:PrecisionPlan",
        "PrecisionRule": "deepseek_hpf.config:PrecisionRule",
        "ProfileReport": "deepseek_hpf.profiler.report:ProfileReport",
        "TuningResult": "deepseek_hpf.tuning.result:TuningResult",
        "apply_policy": "deepseek_hpf.adapters.apply:apply_policy",
        "callbacks": "deepseek_hpf.callbacks",
        "clipping": "deepseek_hpf.optimizers.clipping",
        "data": "deepseek_hpf.data",
        "export": "deepseek_hpf.adapters.export:export",
        "hardware": "deepseek_hpf.hardware",
        "optimizers": "deepseek_hpf.optimizers",
        "memory": "deepseek_hpf.memory",
        "profile": "deepseek_hpf.profiler.entry:profile",
        "tune": "deepseek_hpf.tuning.tune:tune",
    },
)


def __getattr__(name: str) -> object:
    value = _exported(name)
    _register_with_keras()
    return value


def _register_with_keras() -> None:
    """Lets Keras load a model that was saved with our optimizers.

    Keras takes a class from a file only if it is registered, and an optimizer's is when its module
    is imported. So that happens as soon as Keras is there, but never brings Keras in.
    """
    if "keras" in sys.modules:
        import_with_backend("deepseek_hpf.optimizers.loss_scale_optimizer")
        import_with_backend("deepseek_hpf.optimizers.adam_8bit")


_register_with_keras()
