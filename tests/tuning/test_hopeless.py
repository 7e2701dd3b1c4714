"""Which formats the tuner leaves out, by made-up figures."""

import time
import types

import keras
import pytest

from deepseek_hpf import hardware
from deepseek_hpf.hardware import Device, ProbeResult, Support
from deepseek_hpf.hardware.throughput import NO_TIME, Figure, Throughput
from deepseek_hpf.tuning import sequence
from deepseek_hpf.tuning.hopeless import convolution_share, why_hopeless

NONE = Figure(None)
NATIVE, EMULATED = Support("native", "it has made_up"), Support("emulated", "it has no made_up")


def device(support=NATIVE):
    return Device("cpu", "amd", "A CPU", support={"float16": support, "bfloat16": NATIVE})


def found(matmul, convolution):
    """Figures of float16 as given; float32 does 100 GFLOP/s."""

    def figure(value):
        return value if isinstance(value, Figure) else Figure(value * 1e11)

    base = Throughput("float32", Figure(1e11), Figure(1e11), NONE, NONE)
    low = Throughput("float16", figure(matmul), figure(convolution), NONE, NONE)
    return ProbeResult("A CPU", "jax", (base, low))


@pytest.mark.parametrize(
    ("matmul", "convolution", "share", "hopeless"),
    [
        (2.0, 2.0, 0.9, False),
        (0.9, 0.9, 0.9, False),
        # Half the speed may be made good by half the bytes.
        (0.5, 0.5, 0.9, False),
        (0.3, 0.3, 0.9, True),
        (0.3, 0.3, 0.1, True),
        # Without convolutions their speed does not matter.
        (0.8, 0.01, 0.0, False),
        (0.3, 5.0, 0.0, True),
        # Convolutions alone are slow: ResNet-50 has nothing else, a vision transformer one.
        (0.8, 0.1, 0.92, True),
        (0.8, 0.1, 0.006, False),
        (0.8, 0.001, 0.006, True),
        # VGG-16: by weights a tenth, by work all.
        (0.8, 0.1, 0.106, False),
        # Products of matrices alone are slow, and how much of the work they are is not known.
        (0.01, 0.9, 0.1, False),
    ],
)
@pytest.mark.parametrize("support", [NATIVE, EMULATED])
def test_figures_decide_and_the_datasheet_does_not(matmul, convolution, share, hopeless, support):
    reason = why_hopeless(found(matmul, convolution), device(support), "float16", share)
    assert (reason is not None) == hopeless
    if reason:
        slowest = min(matmul, convolution if share else matmul)
        assert f"{slowest:.2g} times float32's speed" in reason
        assert "against 100 GFLOP/s" in reason
        assert "made_up" not in reason


def test_none_is_none_however_fast():
    reason = why_hopeless(found(9.0, 9.0), device(Support("none", "made up")), "float16", 0.5)
    assert reason == "A CPU cannot compute in it: made up"


def test_what_failed_in_this_format_alone_is_hopeless():
    failed = Figure(None, "NotFoundError: no kernel")
    for figures in (found(failed, 1.0), found(1.0, failed)):
        assert "no kernel" in why_hopeless(figures, device(), "float16", 0.5)
    assert why_hopeless(found(1.0, failed), device(), "float16", 0.0) is None


@pytest.mark.parametrize("figure", [Figure(None, NO_TIME), NONE])
def test_without_figures_the_datasheet_decides(figure):
    for figures in (found(figure, 1.0), found(1.0, figure)):
        assert why_hopeless(figures, device(), "float16", 0.5) is None
        assert "it has no made_up" in why_hopeless(figures, device(EMULATED), "float16", 0.5)


def test_what_fails_in_float32_too_says_nothing_of_the_format():
    failed = Figure(None, "ResourceExhaustedError: no memory")
    both = ProbeResult(
        "A CPU",
        "jax",
        tuple(Throughput(name, failed, failed, NONE, NONE) for name in ("float32", "float16")),
    )
    assert why_hopeless(both, device(), "float16", 0.5) is None


def test_the_share_of_convolutions():
    class ConvNet(keras.layers.Layer):
        """No convolution, whatever its name says."""

        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 3))

        def call(self, x):
            return x @ self.kernel

    layers = keras.layers
    # 3 x 3 x 1 x 4 and 16 x 9; biases do not multiply.
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3),
            layers.Flatten(),
            layers.Dense(9),
        ]
    )
    assert convolution_share(model) == pytest.approx(36 / (36 + 64 * 9))
    nested = keras.Sequential([keras.Input((6, 6, 1)), model, ConvNet()])
    assert convolution_share(nested) == pytest.approx(36 / (36 + 64 * 9 + 27))
    assert convolution_share(keras.Sequential([keras.Input((4,)), ConvNet()])) == 0.0
    assert convolution_share(keras.Sequential([keras.Input((4,)), layers.Dropout(0.1)])) == 0.0
    text = [keras.Input((8, 2)), layers.SeparableConv1D(3, 3), layers.Conv1DTranspose(2, 3)]
    assert convolution_share(keras.Sequential(text)) == 1.0


def test_the_tuner_asks_within_its_time(monkeypatch):
    budgets, said = [], []
    made = found(0.8, 0.05)
    low = Throughput("bfloat16", Figure(2e11), Figure(2e11), NONE, NONE)

    def probe(device, *, time_budget, progress):
        budgets.append(time_budget)
        progress("matmul, float32")
        return ProbeResult("A CPU", "jax", (*made.throughputs, low))

    monkeypatch.setattr(hardware, "probe", probe)
    convolving = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3)])
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    for model, expected in ((convolving, {"mixed_float16"}), (dense, set())):
        search = types.SimpleNamespace(
            deadline=time.monotonic() + 100.0,
            say=lambda text, ratio: said.append(text),
            trial=types.SimpleNamespace(model=model),
        )
        reasons = sequence.hopeless_policies(search)
        assert set(reasons) == expected
        assert all("0.05 times" in reason for reason in reasons.values())
    assert all(0 < budget <= 25.0 for budget in budgets)
    assert "matmul" in said[0]
    search.deadline = 0.0
    sequence.hopeless_policies(search)
    assert budgets[-1] == 0.0
