"""A batch that is not finite does not stay in batch normalization's running statistics."""

import math

import pytest
import torch
from torch_loops import assert_equal

from deepseek_hpf.torch import HybridPrecisionContext

pytestmark = pytest.mark.pure


def create(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 1)
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def statistics(model):
    return [model[1].running_mean.clone(), model[1].running_var.clone()]


def step(model, optimizer, inputs):
    optimizer.zero_grad()
    model(inputs).float().square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("mode", ["fp16", "bf16", "fp32"])
def test_a_skipped_step_sets_them_back(mode, value):
    model, optimizer = create()
    with HybridPrecisionContext(mode) as context:
        step(model, optimizer, torch.randn(8, 4))
        before = statistics(model)
        step(model, optimizer, torch.full((8, 4), value))
        assert context.skipped_steps == 1
        assert_equal(statistics(model), before)
        step(model, optimizer, torch.randn(8, 4))
    assert not torch.equal(statistics(model)[0], before[0])


def test_an_overflow_of_the_scale_alone_does_not():
    """The forward pass was finite: its statistics stay, as with `torch.amp`."""
    model, optimizer = create()
    inputs = torch.randn(8, 4)
    with HybridPrecisionContext("fp32") as context:
        before = statistics(model)
        model(inputs).sum().backward()
        model[0].weight.grad.fill_(math.inf)
        optimizer.step()
    assert context.skipped_steps == 1
    assert not torch.equal(statistics(model)[0], before[0])


def test_accumulation_and_two_models():
    models = [create(seed) for seed in (0, 1)]
    before = [statistics(model) for model, _ in models]
    with HybridPrecisionContext("fp32") as context:
        for inputs in (torch.randn(8, 4), torch.full((8, 4), math.nan)):
            for model, _ in models:
                model(inputs).sum().backward()
        for _, optimizer in models:
            optimizer.step()
    assert context.skipped_steps == 2
    for (model, _), expected in zip(models, before, strict=True):
        assert_equal(statistics(model), expected)


def test_evaluation_keeps_nothing():
    model, optimizer = create()
    model.eval()
    before = statistics(model)
    with HybridPrecisionContext("fp32"):
        step(model, optimizer, torch.full((8, 4), math.nan))
    assert_equal(statistics(model), before)


def test_layers_without_running_statistics():
    model = torch.nn.BatchNorm1d(4, track_running_stats=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with HybridPrecisionContext("bf16") as context:
        step(model, optimizer, torch.full((8, 4), math.nan))
    assert context.skipped_steps == 1


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_still_compiles_whole():
    model, optimizer = create()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with HybridPrecisionContext("bf16") as context:
        step(compiled, optimizer, torch.randn(8, 4))
    assert context.skipped_steps == 0
    assert float(statistics(model)[0].abs().sum()) > 0
