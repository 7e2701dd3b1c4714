"""PyTorch's quantiser makes the codes of the one that runs everywhere."""

import math

import pytest

torch = pytest.importorskip("torch")

from deepseek_hpf.storage import group_quantiser_torch as quantiser  # noqa: E402

pytestmark = pytest.mark.backend("torch")


def relu(x):
    return x.relu()


def negative(x):
    return -x.abs() - 1


def half_negative(x):
    return -x.relu()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", [torch.clone, relu, negative, half_negative])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_codes_are_those_of_the_other_quantiser(bits, form, dtype):
    from deepseek_hpf.storage.group_quantiser import GroupQuantiser

    x = form(torch.randn(41, 333)).to(dtype)
    packed = quantiser.quantise(x, bits, 5)
    codes, low, step = GroupQuantiser(bits, 5).compress(x)
    torch.testing.assert_close(packed.low, low)
    torch.testing.assert_close(packed.step, step)
    # The last bit of a quotient may push a value over the edge.
    assert (packed.codes != codes).float().mean() < 1e-3
    expected = GroupQuantiser(bits, 5).restore((packed.codes, low, step), x.shape, str(dtype)[6:])
    assert torch.equal(packed.restore(), expected)


def test_blocks_do_not_show(monkeypatch):
    x = torch.randn(2000).relu()
    whole = quantiser.quantise(x, 8)
    monkeypatch.setattr(quantiser, "BLOCK", 2 * quantiser.GROUP)
    parts = quantiser.quantise(x, 8)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.restore(), parts.restore())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_to_be_kept_whole(value):
    x = torch.randn(1000)
    x[torch.randint(1000, ())] = value
    assert quantiser.quantise(x, 8) is None
    assert quantiser.as_mask(x) is None


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (5, 77)])
def test_shapes(shape):
    x = torch.randn(shape)
    back = quantiser.quantise(x, 8).restore()
    assert back.shape == x.shape
    assert torch.allclose(back, x, atol=0.1)


@pytest.mark.parametrize("value", [2.0, 1 / 0.9, -3.0, 2.0**-130, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_take_a_bit_and_come_back_exactly(value, dtype):
    x = (torch.rand(40, 77) < 0.5).to(dtype) * value
    packed = quantiser.as_mask(x)
    assert torch.equal(packed.restore(), x)
    assert packed.codes.nbytes == math.ceil(x.numel() / 256) * 32


def test_what_is_no_mask_is_none():
    x = (torch.rand(3000) < 0.5).float()
    x[-1] = 2.0
    assert quantiser.as_mask(x) is None
    assert quantiser.as_mask(torch.randn(3000)) is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_in_bytes(bits):
    codes = torch.randint(2**bits, (7, 64)).to(torch.uint8)
    packed = quantiser.pack_codes(codes, bits)
    assert packed.shape == (7, 64 * bits // 8)
    assert torch.equal(quantiser.unpack_codes(packed, bits), codes)
