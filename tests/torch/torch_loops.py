"""Small models and loops, with and without the context."""

import torch

FP16 = {"loss_scale": {"initial_scale": 1024.0, "growth_steps": 3}}


def create_model(seed=0, *, sparse=False):
    """A small regression model in float32."""
    torch.manual_seed(seed)
    first = torch.nn.Embedding(10, 6, sparse=sparse) if sparse else torch.nn.Linear(4, 6)
    return torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(6, 1))


def create_batches(count, seed=1, *, sparse=False):
    """Inputs and labels."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        inputs = torch.randn(16, 4, generator=generator)
        if sparse:
            inputs = torch.randint(0, 10, (16,), generator=generator)
        yield inputs, torch.randn(16, 1, generator=generator)


def loss_of(model, inputs, labels):
    """Mean squared error, in float32 as autocast would have it."""
    return torch.nn.functional.mse_loss(model(inputs).float(), labels)


def gradients_of(model):
    """Copies of the gradients."""
    return [p.grad.clone() for p in model.parameters()]


def weights_of(model):
    """Copies of the weights."""
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(one, other):
    """The same bits, tensor by tensor."""
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def autocast_cpu(dtype=torch.float16):
    """PyTorch's own, for the loops to compare with."""
    return torch.autocast("cpu", dtype=dtype)
