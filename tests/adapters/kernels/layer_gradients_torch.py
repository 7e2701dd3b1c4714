"""A layer's result and gradients, as they come, under PyTorch."""

import torch
from keras.src.backend.torch.core import to_torch_dtype


def outputs_and_gradients(layer, x, upstream=None, jit_compile=False):
    dtype = to_torch_dtype(layer.compute_dtype)
    x = torch.as_tensor(x).to(dtype).requires_grad_()
    y = layer(x)
    given = torch.ones_like(y) if upstream is None else torch.as_tensor(upstream)
    weights = [v.value for v in layer.trainable_variables]
    return [y.detach(), *torch.autograd.grad(y, [x, *weights], given.to(y.dtype))]
