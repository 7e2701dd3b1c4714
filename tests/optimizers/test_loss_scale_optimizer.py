"""The optimizer's steps: what is updated, what is skipped, what is counted."""

import keras
import numpy as np
import pytest
from steps import BACKEND, bits, compiled_apply, number, numbers, tensors, variables

from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.optimizers import clipping
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

KERAS = keras.optimizers


def sgd(**arguments):
    return KERAS.SGD(arguments.pop("learning_rate", 0.5), **arguments)


def counts(optimizer):
    names = ("skipped_steps", "clipped_steps", "step_skipped", "consecutive_skips")
    return tuple(int(number(getattr(optimizer, name))) for name in names)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_finite_step_is_keras_step(compiled):
    start, gradient = np.random.normal(size=(2, 5)).astype("float32")
    ours, theirs = LossScaleOptimizer("adam", initial_scale=1024.0), KERAS.Adam()
    w, v = variables(start), variables(start)
    step = compiled_apply(ours, w) if compiled else lambda g: ours.apply(g, w)
    for _ in range(2):
        step(tensors(gradient * 1024))
        if BACKEND == "jax":
            theirs.build(v)
            new, own = theirs.stateless_apply(theirs.variables, tensors(gradient), v)
            for variable, value in zip([*v, *theirs.variables], [*new, *own], strict=True):
                variable.assign(value)
        else:
            theirs.apply(tensors(gradient), v)
    np.testing.assert_allclose(numbers(w)[0], numbers(v)[0], rtol=1e-6, atol=1e-8)
    assert number(ours.gradient_norm) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert counts(ours) == (0, 0, 0, 0)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_skip_leaves_everything_as_it_was(bad):
    schedule = KERAS.schedules.ExponentialDecay(0.1, 1, 0.5)
    inner = KERAS.AdamW(schedule, weight_decay=0.1, use_ema=True, ema_overwrite_frequency=2)
    optimizer = LossScaleOptimizer(inner, clipping=clipping.Anomaly(), master_weights=True)
    w = [*variables([1.0, 2.0], dtype="bfloat16"), *variables(3.0, [])]
    step = compiled_apply(optimizer, w)
    step(tensors([1.0, 2.0], 3.0, []))
    kept = [*w, *inner.variables, *(optimizer.target(v) for v in w)]
    kept += [optimizer.telemetry[n] for n in optimizer.clipping.initial_state()]
    before, rate = bits(kept), number(optimizer.learning_rate)
    step(tensors([1.0, 1.0], bad, []))
    assert bits(kept) == before
    assert number(optimizer.learning_rate) == rate
    assert counts(optimizer) == (1, 0, 1, 1)
    assert number(optimizer.dynamic_scale) == 2.0**14
    assert not np.isfinite(number(optimizer.gradient_norm))
    step(tensors([1.0, 2.0], 3.0, []))
    assert bits(w) != before[:3]
    assert counts(optimizer) == (1, 0, 0, 0)


def test_the_floor_and_the_count_on_it():
    optimizer = LossScaleOptimizer(sgd(), initial_scale=4.0, min_scale=0.5)
    w = variables([1.0])
    step = compiled_apply(optimizer, w)
    scales, on_floor = [], []
    for _ in range(6):
        step(tensors([np.inf]))
        scales.append(number(optimizer.dynamic_scale))
        on_floor.append(number(optimizer.consecutive_floor_skips))
    assert scales == [2.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    assert on_floor == [0, 0, 0, 1, 2, 3]
    step(tensors([0.5]))
    assert number(optimizer.consecutive_floor_skips) == 0
    np.testing.assert_allclose(numbers(w)[0], [0.5])


def test_an_enormous_initial_scale_backs_off_until_it_fits():
    optimizer = LossScaleOptimizer(sgd(), initial_scale=2.0**40, max_scale=2.0**40)
    w = variables([1.0])
    step = compiled_apply(optimizer, w)
    for _ in range(30):  # a float16 gradient of 1 overflows from 2**16 on
        step(tensors([number(optimizer.scale_loss(1.0))], dtype="float16"))
    assert number(optimizer.skipped_steps) == 25
    assert number(optimizer.dynamic_scale) == 2.0**15


def test_without_scaling_the_guard_stays():
    optimizer = LossScaleOptimizer(sgd(), initial_scale=None)
    w = variables([1.0])
    loss = tensors(3.0)[0]
    assert not optimizer.scales_loss
    assert optimizer.scale_loss(loss) is loss
    step = compiled_apply(optimizer, w)
    assert optimizer.scale_loss(loss) is loss
    for gradient in (1.0, np.nan, np.inf):
        step(tensors([gradient]))
    np.testing.assert_allclose(numbers(w)[0], [0.5])
    assert counts(optimizer) == (2, 0, 1, 2)
    assert number(optimizer.dynamic_scale) == 1.0
    assert number(optimizer.consecutive_floor_skips) == 2


@pytest.mark.parametrize("rule", [clipping.GlobalNorm(1.0), clipping.Adaptive(0.5, epsilon=2.0)])
def test_a_finite_gradient_of_1e25_is_clipped_not_skipped(rule):
    optimizer = LossScaleOptimizer(sgd(learning_rate=1.0), clipping=rule)
    w = variables([0.0, 0.0])
    compiled_apply(optimizer, w)(tensors([-3e25, 4e25]))
    np.testing.assert_allclose(numbers(w)[0], [0.6, -0.8], rtol=1e-5)
    assert counts(optimizer) == (0, 1, 0, 0)
    assert number(optimizer.gradient_norm) == pytest.approx(5e25 / 2**15, rel=1e-5)


def test_clipping_acts_on_the_unscaled_gradient_and_not_on_a_skip():
    optimizer = LossScaleOptimizer(sgd(learning_rate=1.0), clipping={"kind": "value", "limit": 2.0})
    w = variables([0.0])
    step = compiled_apply(optimizer, w)
    for gradient in (1.0, 3.0, np.inf, -8.0):
        scale = number(optimizer.dynamic_scale)
        step(tensors([gradient * scale]))
    np.testing.assert_allclose(numbers(w)[0], [-1.0])
    assert counts(optimizer) == (1, 2, 0, 0)
    assert number(optimizer.gradient_norm) == 8.0


def test_an_overflow_inside_an_accumulation_window():
    inner = sgd(learning_rate=1.0, gradient_accumulation_steps=2)
    optimizer = LossScaleOptimizer(inner, initial_scale=4.0, clipping=clipping.GlobalNorm(2.0))
    w = variables([0.0])
    step = compiled_apply(optimizer, w)
    seen = []
    for gradient in (2.0, np.inf, 6.0, 1.0, np.nan, 2.0):
        step(tensors([gradient * number(optimizer.dynamic_scale)]))
        accumulated = numbers(inner._accumulated_gradients)[0]
        seen.append((numbers(w)[0].item(), accumulated.item(), number(optimizer.clipped_steps)))
    # (2 + 6) / 2 = 4 is clipped to 2; (1 + 2) / 2 is not. The bad ones leave out only themselves.
    assert seen == [(0, 2, 0), (0, 2, 0), (-2, 0, 1), (-2, 1, 1), (-2, 1, 1), (-3.5, 0, 1)]
    assert number(optimizer.gradient_norm) == 1.5
    assert number(optimizer.skipped_steps) == 2
    assert number(inner._iterations) == 4


def test_a_window_that_overflows_as_a_whole_is_skipped():
    inner = sgd(gradient_accumulation_steps=2)
    optimizer = LossScaleOptimizer(inner, initial_scale=None)
    w = variables([1.0])
    step = compiled_apply(optimizer, w)
    step(tensors([3e38]))
    step(tensors([3e38]))
    assert number(optimizer.skipped_steps) == 1
    np.testing.assert_allclose(numbers(inner._accumulated_gradients)[0], [3e38], rtol=1e-6)


def test_none_overwritten_and_empty_gradients():
    optimizer = LossScaleOptimizer(
        sgd(learning_rate=1.0), initial_scale=8.0, clipping=clipping.GlobalNorm(1.0)
    )
    w = variables([1.0], [2.0], [3.0], np.zeros((0, 2)))
    w[2].overwrite_with_gradient = True
    step = compiled_apply(optimizer, w)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        step(tensors([16.0], None, [40.0], np.zeros((0, 2))))
    np.testing.assert_allclose([x[0] for x in numbers(w)[:3]], [0.0, 2.0, 40.0])
    assert number(optimizer.gradient_norm) == 2.0
    step(tensors([1.0], [1.0], [np.inf], np.zeros((0, 2))))
    assert numbers(w)[2][0] == 40.0
    assert number(optimizer.skipped_steps) == 1


def test_refusals_of_apply_are_keras_own():
    optimizer = LossScaleOptimizer(sgd())
    w = variables([1.0], [2.0])
    with pytest.raises(ValueError, match="must already be built"):
        optimizer.apply(tensors([1.0]))
    optimizer.apply([])
    optimizer.build(w)
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply([None, None], w)
    with pytest.raises(ValueError, match="Received a list of 1 gradients"):
        optimizer.apply(tensors([1.0]))
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(tensors([1.0]), variables([1.0]))
    assert number(optimizer.step_counter) == 0


def test_float16_variables_are_not_made_infinite_by_unscaling():
    optimizer = LossScaleOptimizer(sgd(), initial_scale=2.0**-4, min_scale=2.0**-14)
    w = variables([1.0], dtype="float16")
    optimizer.apply(tensors([60000.0], dtype="float16"), w)
    assert number(optimizer.skipped_steps) == 1
    optimizer.apply(tensors([0.0625], dtype="float16"), w)
    assert np.isfinite(numbers(w)[0]).all()


def test_one_of_two_optimizers_skips():
    a, b = LossScaleOptimizer(sgd()), LossScaleOptimizer(sgd())
    v, w = variables([1.0]), variables([1.0])
    a.apply(tensors([2.0**15]), v)
    b.apply(tensors([np.inf]), w)
    assert (numbers(v)[0].item(), numbers(w)[0].item()) == (0.5, 1.0)
    assert (number(a.skipped_steps), number(b.skipped_steps)) == (0, 1)


@pytest.mark.backend("tensorflow")
def test_sparse_gradients():
    import tensorflow as tf

    def rows(values):
        values = tf.constant(values, tf.float32)
        return tf.IndexedSlices(values, tf.constant([0, 2, 0]), tf.constant([3, 1]))

    for rule in (None, clipping.GlobalNorm(5.0), clipping.Value(3.0)):
        optimizer = LossScaleOptimizer(sgd(learning_rate=1.0), initial_scale=2.0, clipping=rule)
        w = variables(np.zeros((3, 1)))
        step = compiled_apply(optimizer, w)
        step([rows([[2.0], [8.0], [4.0]])])
        # Row 0 is given twice: the norm is that of their sum.
        np.testing.assert_allclose(numbers(w)[0][:, 0], [-3.0, 0.0, -4.0 if rule is None
                                   or rule.kind == "global_norm" else -3.0])  # fmt: skip
        assert number(optimizer.gradient_norm) == 5.0
        step([rows([[3e38], [0.0], [3e38]])])
        assert number(optimizer.skipped_steps) == 1


@pytest.mark.backend("tensorflow")
def test_the_update_compiled_by_xla_agrees_with_the_plain_one():
    import tensorflow as tf

    start = np.random.normal(size=(40, 30)).astype("float32")
    results = []
    for jit in (True, False):
        optimizer = LossScaleOptimizer(
            KERAS.AdamW(1e-2, weight_decay=0.1),
            initial_scale=2.0,
            clipping=clipping.GlobalNorm(1.0),
        )
        optimizer.jit_compile_update = jit
        w = variables(start)
        step = compiled_apply(optimizer, w)
        for gradient in (start, start * 1e-6, start * np.nan, start):
            step(tensors(gradient))
        graph = step.get_concrete_function([tf.TensorSpec((40, 30))]).graph.as_graph_def()
        compiled = [f for f in graph.library.function if "_XlaMustCompile" in f.attr
                    and f.attr["_XlaMustCompile"].b]  # fmt: skip
        assert bool(compiled) is jit
        results.append((numbers(w)[0], counts(optimizer)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5, atol=1e-7)
    assert results[0][1] == results[1][1] == (1, 2, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial_scale": 2.0**30}, "initial_scale"),
        ({"initial_scale": 0.5}, "initial_scale"),
        ({"max_scale": np.inf}, "max_scale"),
        ({"growth_factor": 1.0}, "growth_factor"),
        ({"hysteresis": 0}, "hysteresis"),
        ({"dynamic_growth_steps": 1.5}, "growth_steps"),
        ({"initial_scale": "high"}, "initial_scale"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        LossScaleOptimizer("sgd", **arguments)


def test_arguments_that_contradict():
    with pytest.raises(ConfigError, match="clipped twice"):
        LossScaleOptimizer(sgd(global_clipnorm=1.0), clipping=clipping.Value(1.0))
    with pytest.raises(ConfigError, match="must not scale the loss itself"):
        LossScaleOptimizer(LossScaleOptimizer("sgd"))
    with pytest.raises(ConfigTypeError, match="master_weights=1"):
        LossScaleOptimizer("sgd", master_weights=1)


def test_configuration():
    config = LossScaleOptimizer("sgd", initial_scale=None).get_config()
    assert set(config) == {"name", "inner_optimizer", "initial_scale", "dynamic_growth_steps"}
    optimizer = LossScaleOptimizer(
        {"class_name": "SGD", "config": {"learning_rate": 0.25}},
        growth_factor=4.0,
        min_scale=0.5,
        hysteresis=2,
        clipping=clipping.Adaptive(0.1),
        master_weights=True,
    )
    config = optimizer.get_config()
    assert len(config) == 9
    before = repr(config)
    copy = LossScaleOptimizer.from_config(config)
    assert repr(config) == before
    assert copy.get_config() == config
    assert copy.scale_rules == optimizer.scale_rules
    assert copy.clipping == clipping.Adaptive(0.1)
