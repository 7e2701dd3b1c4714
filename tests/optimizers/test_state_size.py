"""The bytes that are said to be taken are those of the variables."""

import re

import keras
import numpy as np
import pytest
from steps import variables

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.optimizers import Adam8bit, bytes_per_parameter
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

ROWS = re.findall(r"^ +\| (\w+) +\| (.+?) +\|(.+)\|$", bytes_per_parameter.__doc__, re.MULTILINE)[
    1:
]
FORMS = {"True": [True], "False": [False], '"split"': ["split"], '"stochastic"': ["stochastic"]}
FORMS |= {"any": [False, True, "split", "stochastic"], 'True, "split"': [True, "split"]}
CASES = [(dtype, form, row) for dtype, forms, row in ROWS for form in FORMS[forms]]


def taken(variables_):
    sizes = {"int8": 1, "uint8": 1, "int16": 2, "bfloat16": 2, "float16": 2}
    dtypes = [(v, keras.backend.standardize_dtype(v.dtype)) for v in variables_ if len(v.shape)]
    return sum(int(np.prod(v.shape)) * sizes.get(dtype, 4) for v, dtype in dtypes)


@pytest.mark.parametrize(("dtype", "form", "row"), CASES)
def test_the_table_is_true(dtype, form, row):
    said = [float(cell) for cell in row.split("|")]
    size = bytes_per_parameter(dtype, form)
    assert [size.weight, size.master, size.moments, size.total] == said[:4]
    small = bytes_per_parameter(dtype, form, moments_in_8_bits=True)
    assert small.total == pytest.approx(said[4], abs=0.005)
    for inner, expected in ((keras.optimizers.Adam(), size), (Adam8bit(), small)):
        w = variables(np.zeros((128, 256)), dtype=dtype)
        optimizer = LossScaleOptimizer(inner, master_weights=form)
        optimizer.build(w)
        # Seed and counter of random rounding are 8 bytes for all variables together.
        shared = sum(8 for v in optimizer.variables if tuple(v.shape) == (2,))
        assert taken(w) == expected.weight * 2**15
        assert taken(optimizer.variables) - shared == (expected.master + expected.moments) * 2**15


def test_the_table_has_every_combination():
    assert len(CASES) == 4 + 4 + 3
    with pytest.raises(ConfigError, match="variable_dtype='int8'"):
        bytes_per_parameter("int8")
    with pytest.raises(ConfigError, match="master_weights='double'"):
        bytes_per_parameter("float32", "double")
