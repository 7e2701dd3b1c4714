"""A backward pass leaves true gradients, however it came to be, and divides no others."""

import threading

import pytest
import torch
from torch_loops import assert_equal, create_batches, create_model, gradients_of, loss_of

from deepseek_hpf import PrecisionError
from deepseek_hpf.torch import HybridPrecisionContext, entered
from deepseek_hpf.torch.scaled_backward import leaves_of

pytestmark = pytest.mark.pure

# Powers of two, so that multiplying and dividing leaves every bit; the second overflows float16.
SCALES = [2.0**10, 2.0**20]


def scaled_context(scale=1024.0):
    """A context that scales, while the arithmetic is float32's."""
    config = {"loss_scale": {"initial_scale": scale}}
    context = HybridPrecisionContext("fp16", config)
    return context


def unscaled_gradients(backward, model):
    """What a function of a model leaves in its gradients, in float32 without a context."""
    backward(model)
    return gradients_of(model)


def once(model):
    batch = next(create_batches(1))
    with torch.autocast("cpu", enabled=False):
        loss = loss_of(model, *batch)
    loss.backward()


def twice(model):
    batch = next(create_batches(1))
    with torch.autocast("cpu", enabled=False):
        loss = loss_of(model, *batch)
    loss.backward(retain_graph=True)
    loss.backward()


def from_a_gradient(model):
    with torch.autocast("cpu", enabled=False):
        outputs = model(torch.ones(3, 4))
    outputs.backward(torch.tensor([[1.0], [2.0], [3.0]]))


def onto_gradients_by_hand(model):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    once(model)


def onto_zeros(model):
    once(model)
    torch.optim.SGD(model.parameters()).zero_grad(set_to_none=False)
    once(model)


def beside_the_functional_form(model):
    once(model)
    with torch.autocast("cpu", enabled=False):
        loss = loss_of(model, *next(create_batches(1)))
    torch.autograd.backward(loss)


def into_some(model):
    with torch.autocast("cpu", enabled=False):
        loss = loss_of(model, *next(create_batches(1)))
    loss.backward(inputs=model[0].weight, retain_graph=True)
    loss.backward(inputs=list(model.parameters()))


def with_a_graph(model):
    """A gradient penalty by differentiating `.grad`."""
    with torch.autocast("cpu", enabled=False):
        loss = loss_of(model, *next(create_batches(1)))
        loss.backward(create_graph=True)
        penalty = sum(p.grad.square().sum() for p in model.parameters())
    penalty.backward()


def with_a_penalty(model):
    """A gradient penalty by `torch.autograd.grad`."""
    with torch.autocast("cpu", enabled=False):
        loss = loss_of(model, *next(create_batches(1)))
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        loss = loss + sum(gradient.square().sum() for gradient in gradients)
    loss.backward()


def checkpointed(model):
    with torch.autocast("cpu", enabled=False):
        outputs = torch.utils.checkpoint.checkpoint(model, torch.ones(3, 4), use_reentrant=False)
        outputs.sum().backward()


def with_hooks(model):
    """A user's hook on a leaf sees the true gradient, and may replace it."""
    handle = model[0].weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    once(model)
    handle.remove()


WAYS = [
    once,
    twice,
    from_a_gradient,
    onto_gradients_by_hand,
    onto_zeros,
    beside_the_functional_form,
    into_some,
    with_a_graph,
    with_a_penalty,
    checkpointed,
    with_hooks,
]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("backward", WAYS)
@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_are_those_without_a_context(backward, scale):
    expected = unscaled_gradients(backward, create_model())
    model = create_model()
    with scaled_context(scale):
        backward(model)
        seen = gradients_of(model)
    assert_equal(seen, expected)
    assert_equal(gradients_of(model), expected)


def test_the_loss_is_scaled_on_its_way():
    model, seen = create_model(), []
    with scaled_context(), torch.autocast("cpu", enabled=False):
        hidden = model[0](torch.ones(2, 4))
        hidden.register_hook(lambda gradient: seen.append(gradient.clone()))
        model[2](model[1](hidden)).sum().backward()
    assert seen[0].abs().max() >= 100


def test_small_gradients_survive_float16():
    """5e-9 underflows in float16; the scale carries it over."""
    weight = torch.nn.Parameter(torch.ones(4, 4))
    with scaled_context(2.0**15):
        ((torch.ones(1, 4) @ weight).sum() * 5e-9).backward()
    torch.testing.assert_close(weight.grad, torch.full((4, 4), 5e-9), rtol=1e-2, atol=0)


def test_a_float16_loss_takes_what_fits():
    weight = torch.nn.Parameter(torch.full((2, 2), 0.5))
    with scaled_context(2.0**24):
        loss = (torch.ones(1, 2) @ weight @ torch.ones(2, 1)).squeeze()
        assert loss.dtype == torch.float16
        loss.backward()
    torch.testing.assert_close(weight.grad, torch.ones(2, 2))


def test_sparse_gradients():
    indices = torch.tensor([1, 1, 3])
    found = []
    for inside in (True, False):
        model = create_model(sparse=True)
        if inside:
            with scaled_context(), torch.autocast("cpu", enabled=False):
                model(indices).sum().backward()
        else:
            model(indices).sum().backward()
        assert model[0].weight.grad.is_sparse
        found.append([p.grad.to_dense() for p in model.parameters()])
    assert_equal(*found)


def test_backward_runs_outside_of_autocast():
    """A float32 island's gradients are not computed in low precision."""
    model = torch.nn.Linear(64, 1, bias=False)
    inputs, factor = torch.randn(8, 64), torch.randn(8, 1) * (1 + 2.0**-9)
    for mode in ("bf16", "fp16"):
        model.weight.grad = None
        with HybridPrecisionContext(mode):
            with torch.autocast("cpu", enabled=False):
                loss = (model(inputs) * factor).sum()
            loss.backward()
        expected = (inputs.double() * factor.double()).sum(0)[None]
        torch.testing.assert_close(model.weight.grad.double(), expected, rtol=1e-5, atol=1e-5)


def test_functional_gradients_are_not_scaled_and_run_outside_of_autocast():
    model = create_model()
    seen = []
    with scaled_context():
        outputs = model(torch.ones(2, 4))
        outputs.register_hook(lambda gradient: seen.append(float(gradient.abs().max())))
        torch.autograd.grad(outputs.sum(), list(model.parameters()), retain_graph=True)
        torch.autograd.backward(outputs.sum())
    assert seen == [1.0, 1.0]


def test_two_threads_on_one_model_divide_their_own():
    """Each pass divides what it delivers, though both have hooks on the leaves."""
    weight = torch.nn.Parameter(torch.ones(100))
    arrived, barrier = [], threading.Barrier(2, timeout=60)

    class Meeting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, inputs):
            return inputs * 1.0

        @staticmethod
        def backward(ctx, gradient):
            barrier.wait()
            return gradient

    weight.register_hook(lambda gradient: arrived.append(float(gradient.max())))

    def work(scale):
        with scaled_context(scale), torch.autocast("cpu", enabled=False):
            Meeting.apply(weight).sum().backward()
            barrier.wait()

    threads = [threading.Thread(target=work, args=(scale,)) for scale in (2.0, 1024.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert arrived == [1.0, 1.0]


def test_threads_that_autograd_starts_act_for_the_pass(monkeypatch):
    """As on accelerators, where hooks run in a thread of the device."""
    model = create_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model[2].weight.detach().clone()

    def step(number):
        with monkeypatch.context() as patched:
            patched.setattr(torch._C, "_current_graph_task_id", lambda: number)
            model[2].weight.grad = torch.full_like(weight, float("nan"))
            optimizer.step()

    def in_another_thread(_):
        thread = threading.Thread(target=step, args=(torch._C._current_graph_task_id(),))
        thread.start()
        thread.join()

    model[0].weight.register_hook(in_another_thread)
    with HybridPrecisionContext("bf16") as context:
        loss_of(model, *next(create_batches(1))).backward()
    assert context.skipped_steps == 1
    assert torch.equal(model[2].weight, weight)
    assert not entered._passes


def test_nothing_is_left_on_tensors():
    model = create_model()
    with scaled_context():
        loss = loss_of(model, *next(create_batches(1)))
        loss.backward()
    assert not any(tensor._backward_hooks for tensor in (loss, *model.parameters()))


def test_what_pytorch_refuses_is_still_refused():
    model = create_model()
    with scaled_context():
        with pytest.raises(RuntimeError, match="scalar outputs"):
            model(torch.ones(2, 4)).backward()
        with pytest.raises(RuntimeError, match="does not require grad"):
            torch.ones(()).backward()
        loss = loss_of(model, *next(create_batches(1)))
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_an_intermediate_tensor_as_input_is_not_scaled():
    model = create_model()
    with scaled_context(), torch.autocast("cpu", enabled=False):
        hidden = model[0](torch.ones(2, 4))
        model[2](hidden).sum().backward(inputs=[hidden])
    torch.testing.assert_close(hidden.grad, model[2].weight.detach().expand(2, 6))


def test_a_leaf_as_loss():
    weight = torch.tensor(3.0, requires_grad=True)
    with scaled_context():
        weight.backward()
    assert weight.grad == 1.0


def test_a_reentrant_checkpoint_is_refused():
    model = create_model()
    inputs = torch.ones(2, 4, requires_grad=True)
    with scaled_context():
        outputs = torch.utils.checkpoint.checkpoint(model, inputs, use_reentrant=True)
        with pytest.raises(PrecisionError, match="use_reentrant=False"):
            outputs.sum().backward()
    assert all(p.grad is None for p in model.parameters())


def test_a_float16_model_is_refused():
    model = create_model().half()
    with scaled_context():
        loss = loss_of(model, *next(create_batches(1)))
        with pytest.raises(PrecisionError, match="a float16 parameter"):
            loss.backward()
    assert not any(p._backward_hooks for p in model.parameters())


def test_leaves_of_a_graph_with_shared_parts():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    shared = first * second
    for _ in range(50):
        shared = shared + shared
    assert {id(leaf) for leaf in leaves_of((shared * second).sum())} == {id(first), id(second)}
