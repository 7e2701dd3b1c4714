"""Datasets: the embedded digits, and any TFDS image dataset."""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.data.digits_dataset import digits as digits
    from deepseek_hpf.data.image_datasets import images as images

# The modules are not named as the functions: importing a module `digits` would put it in the
# function's place.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "digits": "deepseek_hpf.data.digits_dataset:digits",
        "images": "deepseek_hpf.data.image_datasets:images",
    },
)
