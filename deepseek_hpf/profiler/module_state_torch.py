"""A plain PyTorch module and its surroundings are afterwards what they were."""

import contextlib
import copy
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from deepseek_hpf.profiler.tapping_torch import random_states
from deepseek_hpf.torch.context import HybridPrecisionContext
from deepseek_hpf.torch.loss_scale import LossScale
from deepseek_hpf.torch.master_weights import masters_for
from deepseek_hpf.torch.verdicts import Verdicts


@contextlib.contextmanager
def left_as_it_was(root: torch.nn.Module) -> Iterator[None]:
    """Puts back values, gradients, buffers, training flags and random states.

    Args:
        root: The module.
    """
    modules = list(root.modules())
    flags = [module.training for module in modules]
    held = [dict(module._buffers) for module in modules]
    tensors = [*root.parameters(), *root.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in root.parameters()]
    states = [*random_states(), (random.setstate, random.getstate())]
    states.append((np.random.set_state, np.random.get_state()))
    try:
        yield
    finally:
        for module, flag, buffers in zip(modules, flags, held, strict=True):
            module.training = flag
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
            for parameter, gradient, value in gradients:
                parameter.grad = gradient
                if gradient is not None:
                    gradient.copy_(value)
        for restore, state in states:
            restore(state)


def twin_of(context: HybridPrecisionContext) -> HybridPrecisionContext:
    """A context that acts the same, with a loss scale and counters of its own.

    Args:
        context: Left as it is; what it decided so far holds for the twin.

    Returns:
        The twin.
    """
    config = context.config
    twin = copy.copy(context)
    twin._entries = threading.local()
    twin._loss_scale = LossScale(config.loss_scale)
    # Its own property `scale` would close a round of the original.
    twin._loss_scale.follow(context._loss_scale.standing())
    twin._masters = masters_for(config.master_weights)
    twin._verdicts = Verdicts(twin._loss_scale, config.clipping, twin._masters)
    return twin


def scale_of(context: "HybridPrecisionContext | None", root: torch.nn.Module) -> float:
    """What the context would multiply the loss with.

    Args:
        context: A twin, or None.
        root: The module, for its devices.

    Returns:
        1.0 where nothing computes in float16.
    """
    if context is None:
        return 1.0
    devices: set[Any] = {tensor.device for tensor in root.parameters()} or {torch.device("cpu")}
    low = any(context.autocast_dtype(device) == torch.float16 for device in devices)
    ruled = any("float16" in str(rule.policy).split("_") for rule in context.config.rules)
    return context.scale if low or ruled else 1.0
