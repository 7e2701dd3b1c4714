"""Datasets (the embedded digits, Python's own source code, any TFDS images), and reading ahead."""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.data.digits_dataset import digits as digits
    from deepseek_hpf.data.image_datasets import images as images
    from deepseek_hpf.data.prefetching import prefetch as prefetch
    from deepseek_hpf.data.python_source_dataset import PYTHON_CHARACTERS as PYTHON_CHARACTERS
    from deepseek_hpf.data.python_source_dataset import python_source as python_source

# The modules are not named as the functions: importing a module `digits` would put it in the
# function's place.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "PYTHON_CHARACTERS": "deepseek_hpf.data.python_source_dataset:PYTHON_CHARACTERS",
        "digits": "deepseek_hpf.data.digits_dataset:digits",
        "images": "deepseek_hpf.data.image_datasets:images",
        "prefetch": "deepseek_hpf.data.prefetching:prefetch",
        "python_source": "deepseek_hpf.data.python_source_dataset:python_source",
    },
)
