"""Memory: what a step needs, the batch that fits, activations that are kept in fewer bytes."""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.memory.batch_size_result import BatchSizeResult as BatchSizeResult
    from deepseek_hpf.memory.compress import compress_activations as compress_activations
    from deepseek_hpf.memory.compression_report import CompressionReport as CompressionReport
    from deepseek_hpf.memory.estimating import estimate as estimate
    from deepseek_hpf.memory.finding import find_batch_size as find_batch_size
    from deepseek_hpf.memory.memory_estimate import MemoryEstimate as MemoryEstimate
    from deepseek_hpf.memory.resizable_batches import RemadeBatches as RemadeBatches
    from deepseek_hpf.memory.resizable_batches import ResizableBatches as ResizableBatches

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BatchSizeResult": "deepseek_hpf.memory.batch_size_result:BatchSizeResult",
        "CompressionReport": "deepseek_hpf.memory.compression_report:CompressionReport",
        "MemoryEstimate": "deepseek_hpf.memory.memory_estimate:MemoryEstimate",
        "RemadeBatches": "deepseek_hpf.memory.resizable_batches:RemadeBatches",
        "ResizableBatches": "deepseek_hpf.memory.resizable_batches:ResizableBatches",
        "compress_activations": "deepseek_hpf.memory.compress:compress_activations",
        "estimate": "deepseek_hpf.memory.estimating:estimate",
        "find_batch_size": "deepseek_hpf.memory.finding:find_batch_size",
    },
)
