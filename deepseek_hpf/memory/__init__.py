"""Memory: activations that are kept in fewer bytes."""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.memory.compress import compress_activations as compress_activations
    from deepseek_hpf.memory.compression_report import CompressionReport as CompressionReport

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CompressionReport": "deepseek_hpf.memory.compression_report:CompressionReport",
        "compress_activations": "deepseek_hpf.memory.compress:compress_activations",
    },
)
