"""The public `profile`: looks at what the model is, and imports that framework's side only."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.lazy import import_with_backend

if TYPE_CHECKING:
    from deepseek_hpf.profiler.report import ProfileReport


def profile(
    model: Any,
    batch: Any,
    *,
    steps: int = 1,
    ranges: bool = True,
    census: bool = True,
    criterion: Callable[[Any, Any], Any] | None = None,
    context: Any = None,
) -> "ProfileReport":
    """Finds where a model loses precision and where it converts to no use, from a recorded step.

    The step runs forward, loss and backward, operation by operation. Weights, gradients, buffers,
    optimizer, metrics, compiled functions and random states are afterwards what they were, also
    after an exception. Gradients are recorded under the loss scale and reported without it. Under
    JAX the operations inside layers come from a trace.

    Args:
        model: A Keras model, or a `torch.nn.Module`. A Keras model that is not built is copied and
            the copy built from the batch; one that is not compiled runs forward only.
        batch: For Keras `(x, y)` or `(x, y, sample_weight)`, as in training. For a module
            `(inputs, labels)`, the inputs being a tensor, a tuple of positional arguments or a dict
            of keyword arguments.
        steps: Number of recorded steps on the batch; random layers draw the same numbers in each.
        ranges: Whether to measure ranges, which takes most of the time.
        census: Whether to count the operations of the step.
        criterion: For a module, `criterion(output, labels)`, a scalar; None for forward only.
        context: For a module, the `HybridPrecisionContext` to run under; its loss scale and
            counters stay as they are. None for whatever the caller runs under.

    Returns:
        The report.

    Raises:
        ConfigTypeError: `model` or `context` is of no type that is expected.
        ConfigError: The batch does not fit, the model cannot be built from it, or a Keras model
            comes with a criterion or a context.

    Example:
        >>> import keras, numpy as np
        >>> from deepseek_hpf import profile
        >>> head = keras.layers.Dense(3, dtype="mixed_bfloat16", name="head")
        >>> model = keras.Sequential([keras.Input((4,)), head])
        >>> model.compile("sgd", "mse")
        >>> report = profile(model, (np.ones((2, 4), "float32"), np.ones((2, 3), "float32")))
        >>> [(conflict.kind, conflict.path) for conflict in report.conflicts]
        [('low_output', 'head')]
        >>> report.conflicts[0].rules
        ({'layers': 'head', 'policy': 'float32'},)
    """
    options: dict[str, Any] = {"steps": steps, "ranges": ranges, "census": census}
    if is_plain_module(model):
        side = import_with_backend("deepseek_hpf.profiler.module_profile_torch")
        options |= {"criterion": criterion, "context": context}
        found: ProfileReport = side.profile_module(model, batch, **options)
        return found
    if criterion is not None or context is not None:
        raise ConfigError(
            "`criterion` and `context` are for a torch.nn.Module. "
            f"Received them with: {type(model)}. A Keras model has its loss from `compile` and its "
            "precision from its policy, or from apply_policy."
        )
    found = import_with_backend("deepseek_hpf.profiler.profile").profile(model, batch, **options)
    return found


def is_plain_module(model: Any) -> bool:
    """Whether it is plain PyTorch's. Under PyTorch, Keras's layers are modules too."""
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if torch is None or not isinstance(model, torch.nn.Module):
        return False
    return keras is None or not isinstance(model, keras.Layer)
