"""The protections of a training step, and optimizer state of low precision.

The protections are loss scaling, the guard against non-finite gradients, clipping and masters.
"""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.optimizers.adam_8bit import Adam8bit as Adam8bit
    from deepseek_hpf.optimizers.adam_8bit import AdamW8bit as AdamW8bit
    from deepseek_hpf.optimizers.state_size import StateSize as StateSize
    from deepseek_hpf.optimizers.state_size import bytes_per_parameter as bytes_per_parameter

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Adam8bit": "deepseek_hpf.optimizers.adam_8bit:Adam8bit",
        "AdamW8bit": "deepseek_hpf.optimizers.adam_8bit:AdamW8bit",
        "StateSize": "deepseek_hpf.optimizers.state_size:StateSize",
        "bytes_per_parameter": "deepseek_hpf.optimizers.state_size:bytes_per_parameter",
    },
)
