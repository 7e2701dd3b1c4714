"""Eight bytes that stand for a value: equal on two machines where the values are equal."""

import hashlib
import json
from typing import Any

from deepseek_hpf.config import PrecisionConfig

SIZE = 8  # bytes


def fingerprint(value: Any) -> bytes:
    """Digests a JSON value; the order of an object's keys does not count.

    Args:
        value: Dictionaries, lists, strings, numbers, booleans and None.

    Returns:
        8 bytes, the same in every process and on every machine.

    Example:
        >>> from deepseek_hpf.distributed.fingerprint import fingerprint
        >>> fingerprint({"scale": 2.0, "step": 1}) == fingerprint({"step": 1, "scale": 2.0})
        True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("ascii"), digest_size=SIZE).digest()


def config_values(config: PrecisionConfig) -> dict[str, Any]:
    """Returns what a configuration says, defaults included: files that mean the same are equal.

    Args:
        config: The configuration.

    Returns:
        A JSON value.
    """
    return config.model_dump(mode="json")
