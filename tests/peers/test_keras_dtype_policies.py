"""Keras's own tests of dtype policies pass with our class in place of `DTypePolicy`."""

import pytest
from run_keras_suite import run_keras_suite

KERAS = "keras.src.dtype_policies.dtype_policy.DTypePolicy"
OURS = "deepseek_hpf.policy.MixedPrecisionPolicy"
WAIVED = {
    "DTypePolicyTest::test_repr": 'asserts the class name: <DTypePolicy "mixed_float16">',
    "DTypePolicyTest::test_python_serialization": (
        "asserts the same text after copy and pickle; tests/test_policy.py has ours"
    ),
}


@pytest.mark.parametrize(
    ("module", "waived"),
    [
        ("keras.src.dtype_policies.dtype_policy_test", WAIVED),
        ("keras.src.dtype_policies.dtype_policy_map_test", {}),
    ],
)
def test_keras_suite_passes(module, waived):
    counts = run_keras_suite(
        module,
        {KERAS: OURS},
        waived,
    )
    assert counts.failed == {}
    assert counts.needless == []
    assert sorted(counts.waived) == sorted(waived)
    assert counts.passed > 0
