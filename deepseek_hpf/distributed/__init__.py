"""Agreement between replicas: one decision a step on overflow, loss scale and plan."""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.distributed.bfloat16_gradients_torch import (
        send_gradients_in_bfloat16 as send_gradients_in_bfloat16,
    )
    from deepseek_hpf.distributed.coordinate_torch import coordinate as coordinate

_BFLOAT16 = "deepseek_hpf.distributed.bfloat16_gradients_torch"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "coordinate": "deepseek_hpf.distributed.coordinate_torch:coordinate",
        "send_gradients_in_bfloat16": f"{_BFLOAT16}:send_gradients_in_bfloat16",
    },
)
