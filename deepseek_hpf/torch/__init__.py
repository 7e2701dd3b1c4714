"""Hybrid precision for plain PyTorch loops. Neither Keras nor another framework is imported."""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.torch.context import HybridPrecisionContext as HybridPrecisionContext

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {"HybridPrecisionContext": "deepseek_hpf.torch.context:HybridPrecisionContext"},
)
