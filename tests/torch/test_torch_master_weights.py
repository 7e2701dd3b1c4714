"""A model in low precision, trained by way of float32 masters."""

import copy
import gc
import io
import math

import pytest
import torch
from torch_loops import assert_equal, create_batches, create_model, loss_of, weights_of

from deepseek_hpf import ConfigError, PrecisionError
from deepseek_hpf.torch import HybridPrecisionContext

pytestmark = pytest.mark.pure

MASTERS = {"master_weights": True}
LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "adam loop": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=False),
}


def train(model, optimizer, batches):
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss_of(model, inputs, labels).backward()
        optimizer.step()


def by_hand(name, batches):
    """Masters as one writes them: the optimizer's parameters are float32 copies."""
    low = create_model().bfloat16()
    masters = [torch.nn.Parameter(p.detach().float()) for p in low.parameters()]
    optimizer = OPTIMIZERS[name](masters)
    for inputs, labels in batches:
        low.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(low, inputs, labels)
        loss.backward()
        for parameter, master in zip(low.parameters(), masters, strict=True):
            master.grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(low.parameters(), masters, strict=True):
                parameter.copy_(master)
    return low, masters


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_by_hand(name):
    model = create_model().bfloat16()
    optimizer = OPTIMIZERS[name](model.parameters())
    context = HybridPrecisionContext("bf16", MASTERS)
    with context:
        train(model, optimizer, create_batches(8))
    expected, masters = by_hand(name, create_batches(8))
    assert_equal(weights_of(model), weights_of(expected))
    assert_equal(context.state_dict()["masters"][0], [m.detach() for m in masters])
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    slots = [slot for state in optimizer.state.values() for slot in state.values()]
    assert all(slot.dtype == torch.float32 for slot in slots if isinstance(slot, torch.Tensor))


@pytest.mark.parametrize("mode", LOW)
def test_updates_below_the_spacing_add_up(mode):
    weight = torch.nn.Parameter(torch.ones(3, dtype=LOW[mode]))
    optimizer = torch.optim.SGD([weight], lr=1e-4)
    with HybridPrecisionContext(mode, MASTERS) as context:
        for _ in range(100):
            optimizer.zero_grad()
            weight.float().sum().backward()
            optimizer.step()
    torch.testing.assert_close(weight.float(), torch.full((3,), 0.99), rtol=4e-3, atol=0)
    torch.testing.assert_close(context.state_dict()["masters"][0][0], torch.full((3,), 0.99))


def test_float16_gradients_arrive_in_float32():
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    with HybridPrecisionContext("fp16", MASTERS):
        (weight.float().sum() * 5e-9).backward()
        (weight.float().sum() * 5e-9).backward()
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(weight.grad, torch.full((3,), 1e-8), rtol=1e-2, atol=0)


@pytest.mark.parametrize("mode", LOW)
def test_a_skipped_step_leaves_masters_alone(mode):
    model = create_model().to(LOW[mode])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    context = HybridPrecisionContext(mode, MASTERS)
    with context:
        train(model, optimizer, create_batches(3))
        before = copy.deepcopy((weights_of(model), context.state_dict()["masters"][0]))
        model[0].weight.grad.fill_(math.nan)
        optimizer.step()
    assert context.skipped_steps == 1
    assert_equal(weights_of(model), before[0])
    assert_equal(context.state_dict()["masters"][0], before[1])


@pytest.mark.parametrize("spoil", [1, 3])
def test_a_step_with_many_evaluations_is_undone_with_its_masters(spoil):
    model = create_model().bfloat16()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-2)
    context = HybridPrecisionContext("bf16", MASTERS)
    dtypes, evaluations = set(), []
    batch = next(create_batches(1))

    def closure():
        optimizer.zero_grad()
        dtypes.update(p.dtype for p in model.parameters())
        evaluations.append(loss_of(model, *batch))
        evaluations[-1].backward()
        if len(evaluations) == spoil:
            model[0].weight.grad.fill_(math.nan)
        return evaluations[-1]

    with context:
        optimizer.step(closure)
        assert context.skipped_steps == 1
        assert_equal(weights_of(model), weights_of(create_model().bfloat16()))
        optimizer.step(closure)
        before = copy.deepcopy((weights_of(model), context.state_dict()["masters"][0]))
        assert not torch.equal(before[1][0], before[0][0].float())
        evaluations.clear()
        optimizer.step(closure)
    assert_equal(weights_of(model), before[0])
    assert_equal(context.state_dict()["masters"][0], before[1])
    assert dtypes == {torch.bfloat16}


def test_what_is_assigned_from_outside_wins():
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=1e-4)
    context = HybridPrecisionContext("bf16", MASTERS)
    with context:
        for assigned in (False, True):
            if assigned:
                with torch.no_grad():
                    weight[1] = 4.0
            optimizer.zero_grad()
            weight.float().sum().backward()
            optimizer.step()
    master = context.state_dict()["masters"][0][0]
    torch.testing.assert_close(master, torch.tensor([1 - 2e-4, 4 - 1e-4]), rtol=1e-7, atol=0)


def test_masters_survive_a_checkpoint():
    """Weights, masters and counters go on; PyTorch rounds the slots of such a model by itself."""
    found = []
    for interrupted in (False, True):
        model = create_model().bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        context = HybridPrecisionContext("bf16", MASTERS)
        with context:
            train(model, optimizer, create_batches(4))
        if interrupted:
            file = io.BytesIO()
            torch.save([model.state_dict(), optimizer.state_dict(), context.state_dict()], file)
            file.seek(0)
            states = torch.load(file, weights_only=True)
            model = create_model(seed=5).bfloat16()
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            context = HybridPrecisionContext("bf16", MASTERS)
            for part, state in zip((model, optimizer, context), states, strict=True):
                part.load_state_dict(state)
        with context:
            train(model, optimizer, create_batches(4, seed=2))
        found.append([*weights_of(model), *context.state_dict()["masters"][0]])
    assert_equal(*found)


def test_slots_that_were_loaded_are_widened():
    model = create_model().bfloat16()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    context = HybridPrecisionContext("bf16", MASTERS)
    with context:
        train(model, optimizer, create_batches(2))
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, create_batches(2))
    assert optimizer.state[model[0].weight]["exp_avg"].dtype == torch.float32


def test_a_float32_model_has_no_masters():
    model = create_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    context = HybridPrecisionContext("bf16", MASTERS)
    with context:
        train(model, optimizer, create_batches(1))
    assert context.state_dict()["masters"] == [[None] * 4]
    del optimizer
    gc.collect()
    assert context.state_dict()["masters"] == []


def test_the_scaler_can_load_the_state():
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(HybridPrecisionContext("fp16", MASTERS).state_dict())
    assert scaler.get_scale() == 2.0**15


def test_the_refusal_names_the_way_out():
    model = create_model().half()
    with HybridPrecisionContext("fp16"):
        loss = loss_of(model, *next(create_batches(1)))
        with pytest.raises(PrecisionError, match='set "master_weights"'):
            loss.backward()


@pytest.mark.parametrize("form", ["split", "stochastic"])
def test_forms_of_keras_optimizers_are_refused(form):
    with pytest.raises(ConfigError, match="Set it to true for float32 masters"):
        HybridPrecisionContext("bf16", {"master_weights": form})


def test_a_pytorch_without_wide_gradients(monkeypatch):
    monkeypatch.setattr(torch, "zeros", lambda *_: object())
    with pytest.raises(ConfigError, match=r"2\.10 or later"):
        HybridPrecisionContext("bf16", MASTERS)
