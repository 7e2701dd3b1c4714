"""Ranges against float64 NumPy and ml_dtypes: counts exactly, noise within 0.01 dB."""

import keras
import ml_dtypes
import numpy as np
import pytest

from deepseek_hpf import profile
from deepseek_hpf.profiler.findings import EXACT_DB
from deepseek_hpf.profiler.report import ProfileReport
from deepseek_hpf.profiler.summing import summarize

DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


def wide(size, spread, seed):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * np.exp(rng.standard_normal(size) * spread)).astype(
        "float32"
    )


SPECIAL = [0, -0.0, np.inf, -np.inf, np.nan, 65519, 65520, 448, 464, 465, 61439, 61440, 3.4e38]
TINY = [1e-45, -3e-40, 1e-38, 2**-25, 2**-24, 2**-10, 2**-9, 2**-17, 2**-16, 2**-134, 2**-133]


@pytest.mark.parametrize(
    "values",
    [
        wide(1 << 10, 1, 1),
        wide(5000, 8, 2),
        wide((1 << 20) + 3, 4, 3),
        np.array(SPECIAL + TINY, "float32"),
        np.zeros(7, "float32"),
        np.array([1e-40, -1e-42], "float32"),
        np.full(3, np.nan, "float32"),
        np.array([0.1], "float32"),
        np.array(2.0, "float32"),
        wide(1000, 3, 4).astype("float16"),
    ],
    ids=[
        "normal",
        "wide",
        "chunks",
        "special",
        "zeros",
        "subnormal",
        "nan",
        "one",
        "scalar",
        "float16",
    ],
)
def test_ranges_are_those_of_the_reference(values):
    with np.errstate(all="ignore"):
        check(values, summarize(keras.ops.convert_to_tensor(values)).row("p", "output"))


def check(values, row):
    flat = values.reshape(-1).astype("float64")
    finite = flat[np.isfinite(flat)]
    used = np.abs(finite[finite != 0])
    assert (row.size, row.zeros) == (flat.size, int((flat == 0).sum()))
    assert (row.nans, row.infinities) == (int(np.isnan(flat).sum()), int(np.isinf(flat).sum()))
    assert row.smallest == (used.min() if used.size else None)
    assert row.largest == (np.abs(finite).max() if finite.size else None)
    exponents = np.frexp(used)[1] - 1
    if used.size:
        counts = np.bincount(exponents - row.first_exponent)
        assert list(row.histogram) == counts.tolist()
    for name, dtype in DTYPES.items():
        cast = finite.astype("float32").astype(dtype).astype("float64")
        over = ~np.isfinite(cast)
        entry = row.at(name)
        assert entry.overflow == (over.mean() if finite.size else 0.0)
        assert entry.underflow == ((cast == 0) & (finite != 0)).sum() / max(1, used.size)
        signal = (finite[~over] ** 2).sum()
        noise = ((finite - cast)[~over] ** 2).sum()
        if signal == 0:
            assert entry.noise_db is None
        elif noise == 0:
            assert entry.noise_db == EXACT_DB
        else:
            assert entry.noise_db == pytest.approx(10 * np.log10(signal / noise), abs=0.01)


def test_an_empty_tensor_has_no_range():
    row = summarize(keras.ops.zeros((0, 3))).row("p", "output")
    assert (row.size, row.smallest, row.largest, row.histogram) == (0, None, None, ())


def dense(weight, x, y, optimizer="sgd"):
    layer = keras.layers.Dense(1, use_bias=False, name="d")
    model = keras.Sequential([keras.Input((x.shape[1],)), layer])
    layer.set_weights([weight])
    model.compile(optimizer, "mse")
    return model, (x, y)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_gradients_are_those_of_the_formula_whatever_the_loss_scale(scale):
    rng = np.random.default_rng(5)
    x, y, w = (rng.standard_normal(s).astype("float32") for s in ((8, 3), (8, 1), (3, 1)))
    optimizer = keras.optimizers.SGD()
    if scale:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=scale)
    report = profile(*dense(w, x, y, optimizer), census=False)
    of_output = 2 * (x @ w - y) / 8
    (row,) = report.ranges_of("d", "output_gradient")
    assert row.largest == pytest.approx(np.abs(of_output).max(), rel=1e-5)
    (row,) = report.ranges_of("d", "weight_gradient")
    assert row.largest == pytest.approx(np.abs(x.T @ of_output).max(), rel=1e-4)
    (row,) = report.ranges_of("d", "weight")
    assert row.largest == np.abs(w).max()
    check(x, report.ranges_of("d", "input")[0])


def test_the_report_goes_to_json_and_back():
    x = np.ones((2, 3), "float32")
    report = profile(*dense(np.ones((3, 1), "float32"), x, x[:, :1]), census=False)
    assert ProfileReport.from_dict(report.to_dict()) == report
