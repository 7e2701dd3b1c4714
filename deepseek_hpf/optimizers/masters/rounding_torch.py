"""The rounding of masters under PyTorch, which runs operation by operation.

The halves of a float32 number are looked at as two int16 numbers, so that most of what is read and
written takes 2 bytes an element instead of 4. The results are those of `rounding`, bit by bit.
"""

import torch

QUIET_NAN = 0x7FC0
MAGNITUDE = 0x7FFF
INFINITY = 0x7F80
LOW, HIGH = 0, 1  # little-endian, as everywhere that PyTorch runs


def rounded(master: torch.Tensor) -> torch.Tensor:
    """Returns the bfloat16 image of a float32 master."""
    image, _, _ = _parts(master)
    return image


def parted(master: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Parts a float32 master into its image, and what that leaves out, int16."""
    image, low, nan = _parts(master)
    return image, low.masked_fill(nan, 0).reshape(master.shape)


def joined(image: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Joins what `parted` returned; what was assigned to the image since wins."""
    upper, lower = image.detach().reshape(-1).view(torch.int16), low.detach().reshape(-1)
    magnitude = upper & MAGNITUDE
    assigned = (magnitude == 0) & (lower < 0) | (magnitude >= INFINITY) & (lower > 0)
    lower = lower.masked_fill(assigned, 0)
    halves = torch.empty((*upper.shape, 2), dtype=torch.int16, device=image.device)
    halves[:, LOW] = lower
    # Where the lower half is negative, the image was rounded up.
    torch.add(upper, lower >> 15, out=halves[:, HIGH])
    return halves.reshape(-1).view(torch.float32).reshape(image.shape)


def _parts(master: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The image; the lower halves, in a row; where there are NaNs, in a row."""
    flat = master.detach().reshape(-1)
    halves = flat.view(torch.int16).reshape(-1, 2)
    low, nan = halves[:, LOW], torch.isnan(flat)
    image = (halves[:, HIGH] - (low >> 15)).masked_fill_(nan, QUIET_NAN)
    return image.view(torch.bfloat16).reshape(master.shape), low, nan
