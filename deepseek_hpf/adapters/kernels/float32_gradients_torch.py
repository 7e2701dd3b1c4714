"""Low-precision results with float32 gradients, under PyTorch."""

from collections.abc import Callable
from typing import Any

import torch


def differentiated_in_float32(
    function: Callable[..., torch.Tensor], x: torch.Tensor, *weights: torch.Tensor
) -> torch.Tensor:
    """Computes a function in the dtype of its input, and its gradients in float32.

    Args:
        function: Of the input and the weights, all of one dtype.
        x: The input, float16 or bfloat16.
        weights: float32.

    Returns:
        The function's result. The gradient of `x` has the dtype of `x`, those of the weights are
        float32 and never anything else.

    Example:
        >>> import torch
        >>> from deepseek_hpf.adapters.kernels.float32_gradients_torch import (
        ...     differentiated_in_float32,
        ... )
        >>> x, weight = torch.full((1, 1), 1e-4).half(), torch.ones(1, 1, requires_grad=True)
        >>> (1e-4 * differentiated_in_float32(torch.matmul, x, weight)).sum().backward()
        >>> f"{weight.grad.item():.1e}"
        '1.0e-08'
    """
    result: torch.Tensor = _Float32Gradients.apply(function, x, *weights)
    return result


class _Float32Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.function = function
        ctx.save_for_backward(x, *weights)
        return function(x, *(weight.to(x.dtype) for weight in weights))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        wide = [value.to(x.dtype).float() for value in (x, *weights)]

        def of_needed(*given: torch.Tensor) -> Any:
            rest = iter(given)
            values = [next(rest) if n else w for w, n in zip(wide, needed, strict=True)]
            return ctx.function(*values)

        given = [w for w, n in zip(wide, needed, strict=True) if n]
        # Differentiable itself, which `torch.autograd.grad` on detached values would not be.
        _, gradients_of = torch.func.vjp(of_needed, *given)
        gradients = iter(gradients_of(upstream[0].float()))
        dx, *dweights = (next(gradients) if n else None for n in needed)
        return None, dx if dx is None else dx.to(x.dtype), *dweights
