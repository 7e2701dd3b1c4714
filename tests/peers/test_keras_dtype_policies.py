"""Keras's own tests of dtype policies pass with our class in place of `DTypePolicy`."""

import pytest
from run_keras_suite import run_keras_suite

FOLDER = "keras.src.dtype_policies"
OURS = "deepseek_hpf.policy.MixedPrecisionPolicy"
REPLACEMENTS = {
    f"{FOLDER}.dtype_policy_test.DTypePolicy": OURS,
    f"{FOLDER}.dtype_policy_map_test.dtype_policies.DTypePolicy": OURS,
}
WAIVED = {
    "DTypePolicyTest::test_repr": 'asserts the class name: <DTypePolicy "mixed_float16">',
    "DTypePolicyTest::test_python_serialization": (
        "asserts the same text after copy and pickle; tests/test_policy.py has ours"
    ),
    "DTypePolicyMapTest::test_basic_usage": (
        "asserts that a policy without arguments is the global one; ours is 'auto'"
    ),
    "DTypePolicyMapTest::test_default_policy": (
        "asserts that a map, as it is written, takes the names of the policies inside away from "
        "them; ours keep theirs"
    ),
}


@pytest.mark.slow
def test_keras_suites_pass():
    modules = [f"{FOLDER}.dtype_policy_test", f"{FOLDER}.dtype_policy_map_test"]
    counts = run_keras_suite(modules, REPLACEMENTS, WAIVED)
    assert counts.failed == {}
    # Where "auto" is float32, it is the global policy too, and the test passes.
    assert set(counts.needless) <= {"DTypePolicyMapTest::test_basic_usage"}
    assert sorted(counts.waived + counts.needless) == sorted(WAIVED)
    assert counts.passed > 0
