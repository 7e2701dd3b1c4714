"""`hpf_profiler --criterion`: a plain PyTorch module in place of a Keras model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deepseek_hpf.cli.loading import load_factory, load_module
from deepseek_hpf.cli.npz_batch import batch_from_file
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.profiler.entry import profile
from deepseek_hpf.profiler.report import ProfileReport
from deepseek_hpf.torch.context import HybridPrecisionContext


def profiled_module(
    target: str,
    criterion: str,
    *,
    data: Path | None,
    rows: int,
    policy: str | None,
    config: Path | None,
    steps: int,
) -> ProfileReport:
    """Builds the user's module and profiles it.

    Args:
        target: Names a function that returns a `torch.nn.Module`.
        criterion: Names a function of output and labels, or a class of such functions.
        data: The batch.
        rows: How many rows of it.
        policy: What the context computes in; None with `config` None for no context.
        config: The context's configuration.
        steps: Steps to look at.

    Returns:
        The profile.

    Raises:
        ConfigError: Something named is not there or none of what is expected, or there is no batch.
    """
    if data is None:
        raise ConfigError(
            "a torch.nn.Module does not tell the shapes of its inputs: expected a batch. "
            'Received: no --data. Write one with np.savez("batch.npz", x=inputs, y=labels).'
        )
    context = _context(policy, config)
    loss = _criterion(criterion)
    module = load_module(target)
    x, y = batch_from_file(data, rows)[:2]
    inputs = tuple(map(_tensor, x)) if isinstance(x, list) else _tensor(x)
    labels = [_tensor(each) for each in y] if isinstance(y, list) else _tensor(y)
    return profile(module, (inputs, labels), steps=steps, criterion=loss, context=context)


def _context(policy: str | None, config: Path | None) -> HybridPrecisionContext | None:
    if policy is None and config is None:
        return None
    given = PrecisionConfig() if config is None else PrecisionConfig.from_json(config)
    return HybridPrecisionContext(config=given if policy is None else given.replace(policy=policy))


def _criterion(target: str) -> Callable[[Any, Any], Any]:
    """A loss function, or one of a class such as `torch.nn:CrossEntropyLoss`."""
    found = load_factory(target)
    made: Callable[[Any, Any], Any] = found() if isinstance(found, type) else found
    return made


def _tensor(array: Any) -> Any:
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise ConfigError(
            f"expected arrays of numbers. Received: one of dtype {array.dtype}."
        ) from error
