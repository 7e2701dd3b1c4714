"""States of the random generators that are global to the process: Python's, NumPy's and PyTorch's.

Keras layers draw from seed generators of their own, which are variables. The global generators
order the data: Keras shuffles arrays with NumPy's under JAX and with PyTorch's under PyTorch, and a
`PyDataset` with Python's; a user's augmentation may draw from any.
"""

import importlib.util
import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

RandomStates = dict[str, Any]


def capture_random_states() -> RandomStates:
    """Reads the global generators.

    Returns:
        JSON values only. PyTorch's generators are in it if PyTorch was already imported; NumPy's is
        None if a program replaced the Mersenne Twister.
    """
    version, words, gauss = random.getstate()
    states: RandomStates = {"python": [version, list(words), gauss], "numpy": _capture_numpy()}
    if "torch" in sys.modules:
        from deepseek_hpf.checkpoint.random_states_torch import capture_torch_states

        states["torch"] = capture_torch_states()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Sets the global generators back.

    Args:
        states: What `capture_random_states` returned. Generators that it does not hold are left as
            they are.
    """
    if states.get("python") is not None:
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words), gauss))
    if states.get("numpy") is not None:
        _restore_numpy(states["numpy"])
    if states.get("torch") is not None and importlib.util.find_spec("torch") is not None:
        from deepseek_hpf.checkpoint.random_states_torch import restore_torch_states

        restore_torch_states(states["torch"])


def _capture_numpy() -> dict[str, Any] | None:
    state: Any = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        return None
    return {
        "key": state["state"]["key"].tolist(),
        "pos": int(state["state"]["pos"]),
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]),
    }


def _restore_numpy(state: Mapping[str, Any]) -> None:
    key = np.asarray(state["key"], dtype=np.uint32)
    np.random.set_state(("MT19937", key, state["pos"], state["has_gauss"], state["gauss"]))
