"""Float32 masters: no update is lost, no assignment from outside either."""

import keras
import numpy as np
import pytest
from keras import ops
from steps import bits, compiled_apply, number, numbers, tensors, variables

from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer


def mastered(inner, **arguments):
    return LossScaleOptimizer(inner, initial_scale=None, master_weights=True, **arguments)


def image(values, dtype):
    return numbers([ops.cast(ops.convert_to_tensor(np.float32(values)), dtype)])[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("inner", ["SGD", "Adam"])
def test_a_thousand_small_updates_arrive(inner, dtype):
    make = getattr(keras.optimizers, inner)
    low, wide = mastered(make(1e-5)), LossScaleOptimizer(make(1e-5), initial_scale=None)
    v, w = variables([1.0], dtype=dtype), variables([1.0])
    low_step, wide_step = compiled_apply(low, v), compiled_apply(wide, w)
    for _ in range(1000):
        low_step(tensors([1.0], dtype=dtype))
        wide_step(tensors([1.0]))
    assert numbers(w)[0][0] == pytest.approx(0.99, abs=1e-4)
    np.testing.assert_array_equal(numbers(v)[0], image(numbers(w)[0], dtype))
    assert bits([low.target(v[0])]) == bits(w)
    assert all(keras.backend.standardize_dtype(x.dtype) != dtype for x in low.variables)


def test_only_low_precision_variables_have_masters():
    optimizer = mastered("sgd")
    w = [*variables([1.0], dtype="bfloat16"), *variables([1.0]), *variables([2.0], dtype="float16")]
    w[2].overwrite_with_gradient = True
    optimizer.build(w)
    assert [optimizer.target(v) is v for v in w] == [False, True, True]
    assert any(x is optimizer.target(w[0]) for x in optimizer.variables)
    np.testing.assert_array_equal(numbers([optimizer.target(w[0])])[0], [1.0])


def test_an_assignment_from_outside_wins_where_it_changed_something():
    optimizer = mastered(keras.optimizers.SGD(1.0))
    w = variables([1.0, 1.0, 0.0, -0.5], dtype="bfloat16")
    master = lambda: numbers([optimizer.target(w[0])])[0]  # noqa: E731
    step = compiled_apply(optimizer, w)
    step(tensors([1e-3, 1e-3, 1e-3, 1e-3]))
    drifted = master()
    neighbour = 1.0 - 2.0**-8  # the next bfloat16 below 1
    w[0].assign(np.float32([1.0, neighbour, 4.0, numbers(w)[0][3]]))
    step(tensors([0.0, 0.0, 0.0, 0.0]))
    np.testing.assert_array_equal(master(), [drifted[0], neighbour, 4.0, drifted[3]])
    np.testing.assert_array_equal(numbers(w)[0], image(master(), "bfloat16"))


def test_weight_decay_constraint_and_averages_work_on_masters():
    inner = keras.optimizers.SGD(0.5, weight_decay=0.5, use_ema=True, ema_momentum=0.5)
    v, w = (keras.Variable(np.float32([2.0]), dtype="bfloat16", name=n) for n in ("kernel", "bias"))
    v.constraint = keras.constraints.NonNeg()
    inner.exclude_from_weight_decay(var_names=["bias"])
    optimizer = mastered(inner)
    step = compiled_apply(optimizer, [v, w])
    step(tensors([0.0], [0.0]))
    assert (numbers([v])[0][0], numbers([w])[0][0]) == (1.5, 2.0)
    step(tensors([9.0], [0.25]))
    assert (numbers([v])[0][0], numbers([w])[0][0]) == (0.0, 1.875)
    optimizer.finalize_variable_values([v, w])
    averages = numbers(inner._model_variables_moving_average)
    np.testing.assert_array_equal(numbers([v, w]), [image(a, "bfloat16") for a in averages])


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [True, False])
def test_fit_in_pure_bfloat16_follows_float32(jit_compile):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("compiles with a C++ compiler, for minutes")
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 4)).astype("float32")
    y = x @ random.normal(size=(4, 1)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, dtype="bfloat16")])
    optimizer = mastered(
        keras.optimizers.Adam(1e-2), clipping={"kind": "global_norm", "max_norm": 9}
    )
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    history = model.fit(x, y, batch_size=16, epochs=6, verbose=0, shuffle=False)
    assert history.history["loss"][-1] < history.history["loss"][0]
    for variable in model.trainable_variables:
        master = numbers([optimizer.target(variable)])[0]
        np.testing.assert_array_equal(numbers([variable])[0], image(master, "bfloat16"))
        # The master holds more than its image: nothing rounded it on the way.
        if variable.path.endswith("kernel"):
            assert (master != image(master, "bfloat16")).any()
    assert number(optimizer.skipped_steps) == 0
