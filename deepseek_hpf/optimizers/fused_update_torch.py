"""Adam's update as one PyTorch kernel: each weight and its moments are read and written once.

Keras's Adam is some ten operations on lists of tensors under PyTorch, each of which reads and
writes all of them. PyTorch's own fused kernel is one, but has its epsilon elsewhere:

    Keras    w -= lr sqrt(c2) / c1 * m / (sqrt(v) + epsilon),         c = 1 - beta^t
    PyTorch  w -= lr / c1 * m / (sqrt(v) / sqrt(c2) + epsilon')

They are the same for `epsilon' = epsilon / sqrt(c2)`.

References:
    - [Adam: A Method for Stochastic Optimization](https://arxiv.org/abs/1412.6980)
    - https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import torch
from torch.optim.adam import adam

from deepseek_hpf.optimizers.step import Step

# Below it an update takes well under a millisecond.
LEAST_ELEMENTS = 1_000_000
_ADAMS = ("Adam", "AdamW")


def suits(step: Step) -> bool:
    """Returns whether the step is a large one of Keras's Adam, in float32 on a CPU."""
    inner = step.inner
    if type(inner).__name__ not in _ADAMS or type(inner).__module__.split(".")[0] != "keras":
        return False
    if inner.amsgrad or step.optimizer.jit_compile_update is False:
        return False
    if torch.compiler.is_compiling():
        return False
    tensors = [gradient for gradient in step.gradients if gradient is not None]
    if sum(tensor.numel() for tensor in tensors) < LEAST_ELEMENTS:
        return False
    values = [target.value for target in step.targets]
    # The kernel goes by addresses: weights, moments and gradients have to lie in one order.
    return all(map(_plain, tensors + values)) and all(value.is_contiguous() for value in values)


def update(
    inner: Any,
    gradients: Sequence[torch.Tensor],
    variables: Sequence[keras.Variable],
    learning_rate: Any,
) -> None:
    """Does what `inner._backend_update_step` does.

    Args:
        inner: Keras's Adam or AdamW; what decays the weights is not done here.
        gradients: Unscaled and clipped, dense float32.
        variables: What is updated.
        learning_rate: Of this step.
    """
    steps = int(inner.iterations) + 1
    places = [inner._get_variable_index(variable) for variable in variables]
    adam(
        [variable.value.detach() for variable in variables],
        [gradient.contiguous() for gradient in gradients],
        [inner._momentums[place].value.detach() for place in places],
        [inner._velocities[place].value.detach() for place in places],
        [],
        # Is counted up by the call.
        [torch.tensor(float(steps - 1)) for _ in variables],
        fused=True,
        amsgrad=False,
        beta1=inner.beta_1,
        beta2=inner.beta_2,
        lr=float(learning_rate),
        weight_decay=0.0,
        eps=inner.epsilon / math.sqrt(1.0 - inner.beta_2**steps),
        maximize=False,
    )


def _plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )
