"""The untouched loop in the context does, bit for bit, what PyTorch's own recipe does.

The recipes are those of PyTorch's "Automatic Mixed Precision examples", the cases those of its
tests of `GradScaler`: growth, overflow, several losses and optimizers, accumulation, clipping.
"""

import pytest
import torch
from torch_loops import (
    FP16,
    assert_equal,
    autocast_cpu,
    create_batches,
    create_model,
    loss_of,
    weights_of,
)

from deepseek_hpf.torch import HybridPrecisionContext

pytestmark = pytest.mark.pure

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "adamw loop": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "muon": lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=0.1),
}
OVERFLOWS = {2, 5, 6}


def create_scaler():
    """PyTorch's scaler, with the constants of `FP16`."""
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)


def spoilt(loss, step):
    """The loss, or one whose gradients overflow."""
    return loss * float("inf") if step in OVERFLOWS else loss


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer(name):
    ours, theirs = create_model(), create_model()
    optimizer = OPTIMIZERS[name](ours.parameters())
    with HybridPrecisionContext("fp16", FP16) as context:
        for step, batch in enumerate(create_batches(10)):
            optimizer.zero_grad()
            spoilt(loss_of(ours, *batch), step).backward()
            optimizer.step()
    optimizer, scaler = OPTIMIZERS[name](theirs.parameters()), create_scaler()
    for step, batch in enumerate(create_batches(10)):
        optimizer.zero_grad()
        with autocast_cpu():
            loss = spoilt(loss_of(theirs, *batch), step)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_equal(weights_of(ours), weights_of(theirs))
    assert context.skipped_steps == len(OVERFLOWS)
    expected = scaler.state_dict()
    assert {key: context.state_dict()[key] for key in expected} == expected


def test_bfloat16_needs_no_scaling():
    ours, theirs = create_model(), create_model()
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.1)
    with HybridPrecisionContext("bf16") as context:
        for batch in create_batches(5):
            optimizer.zero_grad()
            loss_of(ours, *batch).backward()
            optimizer.step()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.1)
    for batch in create_batches(5):
        optimizer.zero_grad()
        with autocast_cpu(torch.bfloat16):
            loss = loss_of(theirs, *batch)
        loss.backward()
        optimizer.step()
    assert_equal(weights_of(ours), weights_of(theirs))
    assert context.skipped_steps == 0


def test_accumulation_and_clipping_by_hand():
    ours, theirs = create_model(), create_model()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    with HybridPrecisionContext("fp16", FP16):
        for step, batch in enumerate(create_batches(9)):
            (loss_of(ours, *batch) / 3).backward()
            if step % 3 == 2:
                torch.nn.utils.clip_grad_norm_(ours.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
    optimizer, scaler = torch.optim.SGD(theirs.parameters(), lr=0.1), create_scaler()
    for step, batch in enumerate(create_batches(9)):
        with autocast_cpu():
            loss = loss_of(theirs, *batch) / 3
        scaler.scale(loss).backward()
        if step % 3 == 2:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert_equal(weights_of(ours), weights_of(theirs))


def test_two_models_two_losses_two_optimizers():
    """Only the optimizer whose gradients overflow skips; the scale backs off once."""

    def both(seed):
        return create_model(seed), create_model(seed + 1)

    def losses(models, batch, step):
        first, second = (loss_of(model, *batch) for model in models)
        return 2 * first + 3 * second, spoilt(3 * second, step)

    ours, theirs = both(0), both(0)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.1) for model in ours]
    with HybridPrecisionContext("fp16", FP16) as context:
        for step, batch in enumerate(create_batches(8)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            first, second = losses(ours, batch, step)
            first.backward(retain_graph=True)
            second.backward()
            for optimizer in optimizers:
                optimizer.step()
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.1) for model in theirs]
    scaler = create_scaler()
    for step, batch in enumerate(create_batches(8)):
        for optimizer in optimizers:
            optimizer.zero_grad()
        with autocast_cpu():
            first, second = losses(theirs, batch, step)
        scaler.scale(first).backward(retain_graph=True)
        scaler.scale(second).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
    for one, other in zip(ours, theirs, strict=True):
        assert_equal(weights_of(one), weights_of(other))
    assert context.skipped_steps == len(OVERFLOWS)
    assert (context.scale, context.state_dict()["_growth_tracker"]) == (
        scaler.get_scale(),
        scaler.state_dict()["_growth_tracker"],
    )


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
def test_a_gradient_penalty_trains_as_in_float32(mode):
    """With `torch.autograd.grad` as PyTorch's example has it, without a scaler's corrections."""
    found = []
    for each in (mode, "fp32"):
        model = create_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with HybridPrecisionContext(each, FP16) as context:
            for batch in create_batches(6):
                optimizer.zero_grad()
                loss = loss_of(model, *batch)
                gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
                penalty = sum(gradient.float().square().sum() for gradient in gradients).sqrt()
                (loss + penalty).backward()
                optimizer.step()
        assert context.skipped_steps == 0
        found.append(weights_of(model))
    start = weights_of(create_model())
    for low, reference, first in zip(*found, start, strict=True):
        moved = (reference - first).norm()
        assert moved > 0
        assert (low - reference).norm() < 0.05 * moved


def test_state_is_interchangeable_with_the_scalers():
    context = HybridPrecisionContext("fp16")
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=64.0, growth_factor=4.0, backoff_factor=0.25, growth_interval=7
    )
    context.load_state_dict(scaler.state_dict())
    state = context.state_dict()
    assert {key: state[key] for key in scaler.state_dict()} == scaler.state_dict()
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(state)
    assert other.state_dict() == scaler.state_dict()
