"""States of PyTorch's global random generators, on the CPU and on each CUDA device."""

from collections.abc import Mapping
from typing import Any

import torch


def capture_torch_states() -> dict[str, Any]:
    """Reads PyTorch's global generators.

    Returns:
        Hexadecimal text: `"cpu"`, and `"cuda"`, one per device that was used.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": _to_text(torch.get_rng_state()), "cuda": [_to_text(state) for state in cuda]}


def restore_torch_states(states: Mapping[str, Any]) -> None:
    """Sets PyTorch's global generators back.

    Args:
        states: What `capture_torch_states` returned. Devices beyond those present are left out.
    """
    torch.set_rng_state(_to_tensor(states["cpu"]))
    for device, state in enumerate(states["cuda"]):
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(_to_tensor(state), device)


def _to_text(state: torch.Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _to_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
