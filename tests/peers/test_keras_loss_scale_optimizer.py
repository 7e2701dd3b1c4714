"""Keras's own tests of its loss-scale optimizer, run on ours."""

import pytest
from run_keras_suite import run_keras_suite

MODULE = "keras.src.optimizers.loss_scale_optimizer_test"
OURS = "deepseek_hpf.optimizers.loss_scale_optimizer.LossScaleOptimizer"
WAIVED: dict[str, str] = {}


@pytest.mark.slow
def test_keras_suite_passes_with_our_class():
    counts = run_keras_suite(MODULE, {f"{MODULE}.LossScaleOptimizer": OURS}, WAIVED)
    assert counts.failed == {}
    assert counts.needless == []
    assert counts.passed + counts.skipped >= 29
    assert counts.passed >= 20
