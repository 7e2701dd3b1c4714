"""Clipping in the context, against float64 references and against the rules of the Keras side."""

import math

import numpy as np
import pytest
import torch
from torch_loops import create_batches, create_model, loss_of

from deepseek_hpf.torch import HybridPrecisionContext
from deepseek_hpf.torch.gradients import gradient_statistics

pytestmark = pytest.mark.pure


def clipped(config, gradients, weights=None, steps=1):
    """The gradients as one step leaves them, and the context."""
    weights = [torch.zeros_like(g) for g in gradients] if weights is None else weights
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    context = HybridPrecisionContext("fp32", {"clipping": config})
    with context:
        for _ in range(steps):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    return [p.grad for p in parameters], context


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 1e25, 1e-20])
def test_global_norm(dtype, factor):
    torch.manual_seed(0)
    gradients = [torch.randn(3, 2, dtype=dtype) * factor, torch.randn(0, dtype=dtype)]
    norm = float(gradients[0].double().norm())
    found, context = clipped({"kind": "global_norm", "max_norm": norm / 2}, gradients)
    torch.testing.assert_close(found[0].double(), gradients[0].double() / 2, rtol=1e-6, atol=0)
    assert context.clipped_steps == 1
    assert context.gradient_norm == pytest.approx(norm, rel=1e-6)
    found, context = clipped({"kind": "global_norm", "max_norm": norm * 1.001}, gradients)
    assert torch.equal(found[0], gradients[0])
    assert context.clipped_steps == 0


def test_value():
    gradients = [torch.tensor([-3.0, 0.1, 0.5]), torch.tensor(0.7)]
    found, context = clipped({"kind": "value", "limit": 0.5}, gradients)
    assert found[0].tolist() == [-0.5, pytest.approx(0.1), 0.5]
    assert float(found[1]) == 0.5
    assert context.clipped_steps == 1
    _, context = clipped({"kind": "value", "limit": 3.0}, gradients)
    assert context.clipped_steps == 0


def test_adaptive():
    """A unit is an output, an index of the first axis; vectors are one unit."""
    torch.manual_seed(0)
    weights = [torch.randn(3, 4, 2, dtype=torch.float64), torch.zeros(5), torch.tensor(2.0)]
    gradients = [torch.randn(3, 4, 2, dtype=torch.float64), torch.ones(5), torch.tensor(1.0)]
    gradients[0][1] *= 1e-6
    found, context = clipped({"kind": "adaptive", "ratio": 0.1}, gradients, weights)
    for unit in range(3):
        allowed = 0.1 * float(weights[0][unit].norm())
        norm = float(gradients[0][unit].norm())
        expected = gradients[0][unit] * min(1.0, allowed / norm)
        torch.testing.assert_close(found[0][unit], expected)
    assert torch.equal(found[0][1], gradients[0][1])
    assert float(found[1].norm()) == pytest.approx(0.1 * 1e-3)
    assert float(found[2]) == pytest.approx(0.2)
    assert context.clipped_steps == 1


def test_adaptive_units_whose_squares_overflow():
    gradients = [torch.full((2, 3), 1e30)]
    found, _ = clipped({"kind": "adaptive", "ratio": 0.5}, gradients, [torch.full((2, 3), 1e25)])
    torch.testing.assert_close(found[0], torch.full((2, 3), 5e24))


def test_anomaly_keeps_to_the_runs_own_norms():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    context = HybridPrecisionContext("fp32", {"clipping": {"kind": "anomaly", "z": 3.0}})
    with context:
        for _ in range(120):
            parameter.grad = torch.randn(3) + 5.0
            optimizer.step()
        before = context.clipped_steps
        parameter.grad = torch.full((3,), 1e6)
        optimizer.step()
    assert context.clipped_steps == before + 1
    assert 5 * math.sqrt(3) < float(parameter.grad.norm()) < 25 * math.sqrt(3)
    saved = context.state_dict()
    other = HybridPrecisionContext("fp32", {"clipping": {"kind": "anomaly", "z": 3.0}})
    other.load_state_dict(saved)
    assert other.state_dict() == saved
    with other:
        parameter.grad = torch.full((3,), 1e6)
        optimizer.step()
    assert float(parameter.grad.norm()) < 100
    assert other.clipped_steps == saved["clipped_steps"] + 1


def test_each_optimizer_has_statistics_of_its_own():
    small, large = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizers = [torch.optim.SGD([p], lr=0.0) for p in (small, large)]
    context = HybridPrecisionContext("fp32", {"clipping": {"kind": "anomaly"}})
    with context:
        for _ in range(5):
            for parameter, size, optimizer in zip(
                (small, large), (1.0, 1e9), optimizers, strict=True
            ):
                parameter.grad = torch.full((1,), size)
                optimizer.step()
    assert context.clipped_steps == 0
    assert len(context.state_dict()["clipping"]) == 2


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "global_norm", "max_norm": 1.0},
        {"kind": "value", "limit": 0.5},
        {"kind": "adaptive", "ratio": 0.25},
    ],
)
def test_sparse_gradients_are_clipped_as_dense_ones(config):
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Embedding(5, 3, sparse=sparse)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with HybridPrecisionContext("fp32", {"clipping": config}) as context:
            model(torch.tensor([1, 1, 4])).square().sum().backward()
            optimizer.step()
        assert context.clipped_steps == 1
        found.append(model.weight.grad.to_dense())
    torch.testing.assert_close(*found)


def test_clipping_sees_unscaled_gradients():
    for mode, scale in (("fp32", 1.0), ("fp16", 2.0**14)):
        model = create_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        config = {
            "loss_scale": {"initial_scale": scale},
            "clipping": {"kind": "global_norm", "max_norm": 1e-3},
        }
        with HybridPrecisionContext(mode, config) as context:
            loss_of(model, *next(create_batches(1))).backward()
            optimizer.step()
        assert context.clipped_steps == 1
        assert float(gradient_statistics([p.grad for p in model.parameters()]).norm) == (
            pytest.approx(1e-3, rel=1e-5)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_statistics_against_float64(dtype):
    torch.manual_seed(0)
    tensors = [(torch.randn(50, 3) * 300).to(dtype), torch.zeros(()).to(dtype), torch.ones(0)]
    finite, norm = gradient_statistics(tensors)
    joined = np.concatenate([t.double().numpy().ravel() for t in tensors])
    assert finite
    assert norm == pytest.approx(np.linalg.norm(joined), rel=1e-5)
    assert gradient_statistics([]) == (True, 0.0)
    for value in (math.inf, math.nan):
        finite, norm = gradient_statistics([*tensors, torch.tensor([value, 1.0]).to(dtype)])
        assert not finite
        assert not math.isfinite(norm)


def test_statistics_of_mixed_dtypes():
    tensors = [torch.full((4,), 1e30), torch.full((4,), 1e200, dtype=torch.float64)]
    finite, norm = gradient_statistics(tensors)
    assert finite
    assert norm == pytest.approx((2 - 2**-23) * 2.0**127)
    finite, norm = gradient_statistics([torch.full((4,), 2e30), torch.ones(2).half()])
    assert (finite, norm) == (True, pytest.approx(4e30))
