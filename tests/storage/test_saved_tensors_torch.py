"""PyTorch's saved tensors: what is packed, what is left, and the gradients that come of it."""

import gc
import math
import weakref

import pytest

torch = pytest.importorskip("torch")

from deepseek_hpf.storage import exact_torch  # noqa: E402
from deepseek_hpf.storage.saved_tensors_torch import SavedTensors  # noqa: E402

pytestmark = pytest.mark.backend("torch")


def network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Dropout(0.3),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 64, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 4),
    )


def gradients(model, x, saved=None):
    torch.manual_seed(0)
    model.zero_grad()
    if saved is None:
        loss = model(x).square().sum()
    else:
        with saved.scope():
            loss = model(x).square().sum()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


def test_exact_storage_changes_no_bit():
    model, x = network(), torch.randn(8, 3, 16, 16)
    loss, expected = gradients(model, x)
    saved = SavedTensors("sparse", smallest=0)
    packed_loss, found = gradients(model, x, saved)
    assert torch.equal(loss, packed_loss)
    assert all(map(torch.equal, found, expected))
    assert 0 < saved.bytes_after < 0.6 * saved.bytes_before


@pytest.mark.parametrize(("storage", "bits"), [("int8", 8), ("int4", 4)])
def test_gradient_of_a_product_is_within_the_step(storage, bits):
    x = torch.randn(64, 128)
    w = torch.randn(128, 32, requires_grad=True)
    upstream = torch.randn(64, 32)
    saved = SavedTensors(storage)
    with saved.scope():
        y = x @ w
    y.backward(upstream)
    expected = x.double().T @ upstream.double()
    rows = x.double().view(-1, 256)
    step = (rows.amax(1) - rows.amin(1)).max() / (2**bits - 2)
    bound = step * upstream.double().abs().sum(0) * (1 + 1e-5)
    assert ((w.grad - expected).abs() <= bound).all()
    assert (w.grad - expected).abs().max() > 0


def test_gradient_is_unbiased():
    x, upstream = torch.randn(64, 128), torch.randn(64, 8)
    expected = x.double().T @ upstream.double()
    total = torch.zeros_like(expected)
    for seed in range(200):
        w = torch.randn(128, 8, requires_grad=True)
        with SavedTensors("int4", seed=seed).scope():
            y = x @ w
        y.backward(upstream)
        total += w.grad
    step = 2 * x.abs().max() / 14
    deviation = 0.5 * step * upstream.double().square().sum(0).sqrt() / math.sqrt(200)
    assert ((total / 200 - expected).abs() < 6 * deviation).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_left_under_autocast_too(dtype):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64, bias=False))
    seen = []
    saved = SavedTensors("int8", smallest=0)
    pack = saved._pack_anew
    saved._pack_anew = lambda x: seen.append(x.numel()) or pack(x)
    x = torch.randn(16, 64)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), saved.scope():
        loss = model(x).float().square().sum()
    assert set(seen) == {16 * 64}
    loss.backward()


def test_frozen_parameters_are_left_when_cast():
    layer = torch.nn.Linear(64, 48).requires_grad_(False)
    seen = []
    saved = SavedTensors("int8", smallest=0, frozen=list(layer.parameters()))
    saved._pack_anew = lambda x: seen.append(x.numel())
    x = torch.randn(16, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), saved.scope():
        y = layer(x * 1.0)
    assert 64 * 48 not in seen
    y.sum().backward()


def test_what_two_operations_save_is_packed_once():
    x = torch.randn(64, 64, requires_grad=True)
    saved = SavedTensors("int8")
    with saved.scope():
        shared = torch.relu(x * 1.0)
        y = shared @ torch.eye(64) + shared.view(64, 64).T.contiguous().T @ torch.ones(64, 64)
        z = shared.reshape(32, 128) * 2.0
        (y.sum() + z.sum()).backward()
    single = x.nbytes
    assert saved.bytes_before <= 3 * single


def test_memory_of_a_freed_tensor_is_not_taken_for_it():
    """The allocator gives a new tensor the address of the freed one."""
    w = torch.eye(64, requires_grad=True)
    saved = SavedTensors("int8")
    for _ in range(20):
        with saved.scope():
            x = torch.randn(64, 64)
            y = x @ w
        upstream = torch.randn(64, 64)
        (gradient,) = torch.autograd.grad(y, w, upstream)
        assert torch.allclose(gradient, x.T @ upstream, atol=2.0)
        del x, y


def test_tensors_changed_in_place_are_packed_again():
    w = torch.eye(64, requires_grad=True)
    x = torch.randn(64, 64)
    with SavedTensors("int8").scope():
        first = x @ w
        x.mul_(100.0)
        second = x @ w
    (gradient,) = torch.autograd.grad(second, w, torch.ones(64, 64))
    assert torch.allclose(gradient, x.T @ torch.ones(64, 64), atol=64 * 700 / 254)
    del first


def test_channels_last_keeps_its_layout():
    x = torch.randn(4, 16, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    seen = []
    with SavedTensors("sparse").scope():
        y = torch.relu(x * 1.0)
    seen.append(y.grad_fn._saved_result)
    assert seen[0].stride() == y.stride()
    assert torch.equal(seen[0], y)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_non_finite_activations_reach_the_gradient(value):
    x = torch.randn(64, 64)
    x[3, 5] = value
    w = torch.randn(64, 8, requires_grad=True)
    with SavedTensors("int8").scope():
        y = x @ w
    y.backward(torch.ones(64, 8))
    assert not torch.isfinite(w.grad[5]).any()
    assert torch.isfinite(w.grad[torch.arange(64) != 5]).all()


def test_nothing_outlives_the_graph():
    saved = SavedTensors("int8")
    x = torch.randn(64, 64, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        with saved.scope():
            hidden = torch.sigmoid(torch.relu(x * 2.0) @ torch.eye(64))
        small = torch.sigmoid(hidden[:1, :1])
        reference = weakref.ref(hidden)
        del hidden, small
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_sparse_keeps_negative_zeros_and_what_is_not_finite(dtype):
    x = torch.randn(5000).relu().to(dtype)
    x[:4] = torch.tensor([-0.0, math.nan, math.inf, -math.inf])
    packed = exact_torch.pack_exactly(x)
    back = packed.restore()
    as_integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(back.view(as_integers), x.view(as_integers))
    assert packed.kept_bytes < 0.9 * x.nbytes


@pytest.mark.parametrize(
    ("bound", "expected"), [(200, torch.uint8), (30000, torch.int16), (2**31 - 1, torch.int32)]
)
def test_integers_take_the_smallest_type(bound, expected):
    x = torch.randint(bound, (100,))
    x[0] = bound
    packed = exact_torch.pack_exactly(x)
    assert packed.values.dtype == expected
    assert torch.equal(packed.restore(), x)


def test_exact_storage_gains_nothing_on_what_is_dense_or_empty():
    assert exact_torch.pack_exactly(torch.randn(100)) is None
    assert exact_torch.pack_exactly(torch.zeros(0, dtype=torch.int64)) is None
    assert exact_torch.pack_exactly(torch.tensor([2**40, 1])) is None
    assert exact_torch.pack_exactly(torch.zeros(0, dtype=torch.bool)).restore().shape == (0,)
