"""Wrapping and unwrapping: nothing that an optimizer has learned is lost."""

import keras
import numpy as np
import pytest
from steps import bits, compiled_apply, number, numbers, tensors, variables

from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.optimizers import clipping
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.optimizers.wrap import unwrap_optimizer, wrap_optimizer

KerasWrapper = keras.optimizers.LossScaleOptimizer
DEFAULT = PrecisionConfig()


def worn(optimizer, scale=1.0, dtype="float32"):
    """An optimizer that has taken a step, and its variables."""
    w = variables([1.0, 2.0], dtype=dtype)
    compiled_apply(optimizer, w)(tensors([scale, 2 * scale], dtype=dtype))
    return w


def test_a_plain_optimizer_keeps_its_slots():
    adam = keras.optimizers.Adam(0.1, loss_scale_factor=1.0)
    worn(adam)
    before = bits(adam.variables)
    wrapped = wrap_optimizer(adam, DEFAULT, scales_loss=True)
    assert wrapped.built
    assert wrapped.inner_optimizer is adam
    assert bits(adam.variables) == before
    assert wrap_optimizer(wrapped, DEFAULT, scales_loss=True) is wrapped
    assert adam.loss_scale_factor is None
    assert unwrap_optimizer(wrapped) is adam
    assert adam.loss_scale_factor == 1.0
    assert unwrap_optimizer(adam) is adam


def test_keras_wrapper_keeps_scale_counter_and_arguments():
    given = KerasWrapper(keras.optimizers.SGD(0.1), initial_scale=8.0, dynamic_growth_steps=2)
    w = worn(given)
    wrapped = wrap_optimizer(given, DEFAULT, scales_loss=True)
    assert (wrapped.initial_scale, wrapped.scale_rules.growth_steps) == (8.0, 2)
    assert (number(wrapped.dynamic_scale), number(wrapped.step_counter)) == (8.0, 1)
    compiled_apply(wrapped, w)(tensors([8.0, 8.0]))
    assert number(given.dynamic_scale) == 8.0
    assert unwrap_optimizer(wrapped) is given
    assert (number(given.dynamic_scale), number(given.step_counter)) == (16.0, 0)


def test_what_the_configuration_sets_wins():
    given = KerasWrapper(keras.optimizers.SGD(0.1), initial_scale=2.0**30)
    assert wrap_optimizer(given, DEFAULT, scales_loss=True).scale_rules.max_scale == 2.0**30
    config = PrecisionConfig.from_dict({"loss_scale": {"max_scale": 65536, "growth_steps": 7}})
    wrapped = wrap_optimizer(given, config, scales_loss=True)
    assert (wrapped.initial_scale, wrapped.scale_rules.growth_steps) == (65536.0, 7)
    assert wrap_optimizer(given, config, scales_loss=False).initial_scale is None
    own = LossScaleOptimizer("sgd", clipping=clipping.Value(1.0), hysteresis=3)
    assert wrap_optimizer(own, DEFAULT, scales_loss=True) is own
    clip = PrecisionConfig.from_dict({"clipping": {"kind": "global_norm", "max_norm": 2.0}})
    changed = wrap_optimizer(own, clip, scales_loss=True)
    assert changed.clipping == clipping.GlobalNorm(2.0)
    assert changed.scale_rules.hysteresis == 3
    with pytest.raises(ConfigError, match="clipped twice"):
        wrap_optimizer(keras.optimizers.SGD(clipnorm=1.0), clip, scales_loss=True)


def test_an_impossible_scale_is_not_carried_over():
    given = KerasWrapper(keras.optimizers.SGD(0.1))
    given.build(variables([1.0]))
    for broken, healed in ((0.0, 1.0), (np.inf, 2.0**24), (np.nan, 1.0)):
        given.dynamic_scale.assign(broken)
        wrapped = wrap_optimizer(given, DEFAULT, scales_loss=True)
        assert number(wrapped.dynamic_scale) == healed


def test_ours_rebuilt_keeps_counters_and_turns_scaling_on_and_off():
    own = LossScaleOptimizer(keras.optimizers.SGD(0.5), clipping=clipping.Anomaly())
    w = worn(own, np.inf)
    compiled_apply(own, w)(tensors([1.0, 1.0]))
    off = wrap_optimizer(own, DEFAULT, scales_loss=False)
    assert (number(off.skipped_steps), number(off.dynamic_scale)) == (1, 1.0)
    assert number(off.telemetry["log_norm_steps"]) == 1
    on = wrap_optimizer(off, DEFAULT, scales_loss=True)
    assert on.initial_scale == 2.0**15
    assert unwrap_optimizer(unwrap_optimizer(on)) is own


@pytest.mark.parametrize("built", [True, False])
def test_masters_on_and_off_again(built):
    adam = keras.optimizers.Adam(1e-4)
    w = worn(adam, dtype="bfloat16") if built else variables([1.0, 2.0], dtype="bfloat16")
    config = PrecisionConfig(master_weights=True)
    wrapped = wrap_optimizer(adam, config, scales_loss=False)
    assert wrapped.inner_optimizer is not adam
    step = compiled_apply(wrapped, w)
    if built:
        np.testing.assert_array_equal(
            numbers(wrapped.inner_optimizer.variables)[-1], numbers(adam.variables)[-1]
        )
    step(tensors([1.0, 1.0], dtype="bfloat16"))
    again = wrap_optimizer(wrapped, PrecisionConfig.from_dict({"clipping": None}), scales_loss=True)
    assert bits([again.target(w[0])]) == bits([wrapped.target(w[0])])
    assert unwrap_optimizer(wrapped) is adam
    assert number(adam.iterations) == built + 1
