"""Agreement between replicas: one decision a step on overflow, loss scale and plan."""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.distributed.coordinate_torch import coordinate as coordinate

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"coordinate": "deepseek_hpf.distributed.coordinate_torch:coordinate"}
)
