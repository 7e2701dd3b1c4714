"""The end of a step under PyTorch: the loss is there before the optimizer is done."""

import torch


def drain() -> None:
    """Waits until the accelerator has done what it was given; without one that is at once."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch.accelerator.is_available():
        torch.accelerator.synchronize()
