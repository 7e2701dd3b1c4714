"""The table of formats against NumPy's and ml_dtypes' own, and promotion."""

import math

import ml_dtypes
import numpy as np
import pytest

from deepseek_hpf.dtypes import FORMATS, common, format_of, promote
from deepseek_hpf.errors import ConfigError

pytestmark = pytest.mark.pure


@pytest.mark.parametrize("name", FORMATS)
def test_limits_are_those_of_ml_dtypes(name):
    ours, theirs = FORMATS[name], ml_dtypes.finfo(name)
    assert ours.bits == theirs.bits
    assert ours.mantissa_bits == theirs.nmant
    assert ours.max == float(theirs.max)
    assert ours.epsilon == float(theirs.eps)
    assert ours.smallest_normal == float(theirs.smallest_normal)
    assert ours.smallest_subnormal == float(theirs.smallest_subnormal)


@pytest.mark.parametrize("name", FORMATS)
def test_limits_are_where_numbers_end(name):
    ours, dtype = FORMATS[name], np.dtype(name)
    with np.errstate(over="ignore", under="ignore"):
        assert float(dtype.type(ours.max)) == ours.max
        assert not np.isfinite(dtype.type(ours.max) * dtype.type(2))
        assert float(dtype.type(1) + dtype.type(ours.epsilon)) == 1 + ours.epsilon
        assert float(dtype.type(ours.smallest_subnormal)) == ours.smallest_subnormal
        assert float(dtype.type(ours.smallest_subnormal) / dtype.type(2)) == 0.0
        infinite = math.isinf(float(np.float64(np.inf).astype(dtype)))
    assert infinite == ours.has_infinity


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_holds_means_a_lossless_cast(first, second):
    """Over every 8- and 16-bit number; wider formats by their extremes."""
    inner, outer = FORMATS[first], FORMATS[second]
    if inner.bits <= 16:
        codes = np.arange(2**inner.bits, dtype=f"uint{inner.bits}").view(np.dtype(first))
        with np.errstate(invalid="ignore"):
            values = codes.astype(np.float64)
        values = values[np.isfinite(values)]
    else:
        parts = [inner.max, inner.smallest_subnormal, 1 + inner.epsilon, -inner.max, 0.0]
        values = np.array(parts, dtype=np.float64)
    with np.errstate(all="ignore"):
        lossless = bool(np.all(values.astype(np.dtype(second)).astype(np.float64) == values))
    assert outer.holds(inner) == lossless


@pytest.mark.parametrize(
    ("dtype", "by_range", "by_resolution"),
    [
        ("float8_e4m3fn", "bfloat16", "float32"),
        ("float8_e5m2", "bfloat16", "float32"),
        ("float16", "bfloat16", "float32"),
        ("bfloat16", "float32", "float32"),
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
    ],
)
def test_promotion(dtype, by_range, by_resolution):
    assert promote(dtype, "range") == by_range
    assert promote(dtype, "resolution") == by_resolution


def test_common_format_of_the_two_halves_is_float32():
    assert common("float16", "bfloat16") == common("bfloat16", "float16") == "float32"
    assert common("float8_e5m2", "float16") == "float16"
    assert common("float32", "float64") == "float64"
    assert all(common(name, name) == name for name in FORMATS)


@pytest.mark.parametrize("name", ["float", "int8", "", "Float16"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ConfigError, match=r"Expected the name of .*float16.*Received: dtype="):
        format_of(name)
