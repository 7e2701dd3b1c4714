"""Rules over modules for what operations save: gradients, bytes, and what is never packed."""

import json
import logging

import pytest
import torch

from deepseek_hpf.torch import HybridPrecisionContext

pytestmark = pytest.mark.pure


class Model(torch.nn.Module):
    """A body of linear layers and a head."""

    def __init__(self):
        super().__init__()
        parts = [torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.GELU()]
        self.body = torch.nn.Sequential(*parts)
        self.norm = torch.nn.LayerNorm(64)
        self.head = torch.nn.Linear(64, 4)

    def forward(self, inputs):
        return self.head(self.norm(self.body(inputs)))


def step(model, x, rules, mode="fp32"):
    """The loss and the gradients of one step of a loop."""
    model.zero_grad()
    with HybridPrecisionContext(mode, {"rules": rules}):
        loss = model(x).float().square().mean()
        loss.backward()
    return float(loss), [p.grad.clone() for p in model.parameters()]


def counted(monkeypatch):
    """Bytes of what is packed from now on, before and after."""
    from deepseek_hpf.storage import saved_tensors_torch

    sizes = []
    original = saved_tensors_torch.SavedTensors._pack_anew

    def noting(self, x):
        packed = original(self, x)
        if packed is not None:
            sizes.append((self.storage, tuple(x.shape), x.nbytes, packed.kept_bytes))
        return packed

    monkeypatch.setattr(saved_tensors_torch.SavedTensors, "_pack_anew", noting)
    return sizes


def relative(found, expected):
    difference = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
    return (difference / sum(float(b.square().sum()) for b in expected)) ** 0.5


@pytest.mark.parametrize(("storage", "error"), [("int8", 0.05), ("int4", 0.6)])
@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_gradients_come_close_and_the_loss_is_the_same(storage, error, mode, monkeypatch):
    model, x = Model(), torch.randn(128, 64)
    loss, expected = step(model, x, [], mode)
    sizes = counted(monkeypatch)
    found_loss, found = step(model, x, [{"layers": "*", "activations": storage}], mode)
    assert found_loss == loss
    assert 0 < relative(found, expected) < error
    assert sizes
    assert {name for name, *_ in sizes} == {storage}
    # Never the weights, whose casts have their shape.
    assert not {(64, 64), (4, 64), (64, 4)} & {shape for _, shape, _, _ in sizes}
    assert sum(after for *_, after in sizes) < 0.6 * sum(before for *_, before, _ in sizes)


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_sparse_changes_no_bit(mode, monkeypatch):
    model, x = Model(), torch.randn(128, 64)
    loss, expected = step(model, x, [], mode)
    sizes = counted(monkeypatch)
    found_loss, found = step(model, x, [{"layers": "body", "activations": "sparse"}], mode)
    assert found_loss == loss
    assert all(map(torch.equal, found, expected))
    assert sizes  # what the ReLU has made zero is not stored


def test_rules_by_path_and_taken_back(monkeypatch):
    model, x = Model(), torch.randn(128, 64)
    sizes = counted(monkeypatch)
    rules = [
        {"layers": "body", "activations": "int8"},
        {"layers": "body/2", "activations": "int4"},
        {"layers": "body.3", "activations": None},
    ]
    step(model, x, rules)
    # What goes into body.0 and what body.1 makes; that again for body.2; nothing for the GELU.
    assert sorted(name for name, *_ in sizes) == ["int4", "int8", "int8"]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_small_tensors_and_those_that_are_not_finite_are_left(monkeypatch):
    model = Model()
    sizes = counted(monkeypatch)
    rules = [{"layers": "*", "activations": "int8"}]
    step(model, torch.randn(8, 64), rules)  # 2 KiB each
    assert sizes == []
    x = torch.randn(128, 64)
    x[5, 5] = torch.inf
    linear = torch.nn.Linear(64, 8, bias=False)
    _, (expected,) = step(linear, x, [])
    _, (found,) = step(linear, x, rules)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()], expected[~expected.isnan()])
    assert sizes == []


def test_an_exception_leaves_no_region(monkeypatch):
    model, x = Model(), torch.randn(128, 64)
    sizes = counted(monkeypatch)
    rules = [{"layers": "*", "activations": "int8"}]
    with pytest.raises(RuntimeError), HybridPrecisionContext("fp32", {"rules": rules}):
        model(torch.randn(128, 63))
    sizes.clear()
    model(x).sum().backward()
    assert sizes == []


def test_training_with_overflow_detection():
    model, x = Model(), torch.randn(128, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = [{"layers": "*", "activations": "int8"}]
    before = [p.detach().clone() for p in model.parameters()]
    with HybridPrecisionContext("bf16", {"rules": rules}) as context:
        for inputs in (x, x * torch.inf, x):
            optimizer.zero_grad()
            model(inputs).float().square().mean().backward()
            optimizer.step()
    assert context.skipped_steps == 1
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert not all(map(torch.equal, model.parameters(), before))


def test_the_same_file_and_what_has_no_effect(tmp_path, caplog):
    path = tmp_path / "precision.json"
    rules = [{"layers": "*", "activations": "recompute"}]
    path.write_text(json.dumps({"rules": rules, "activations": {"memory_goal": 0.5}}))
    with caplog.at_level(logging.WARNING):
        HybridPrecisionContext("fp32", path)
    assert "recompute" in caplog.text
    assert "memory_goal" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        HybridPrecisionContext("fp32", {"rules": [{"layers": "*", "activations": "int8"}]})
    assert caplog.text == ""
