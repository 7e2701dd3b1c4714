"""The watch over gradients and updates: against float64, on every road, and without a trace."""

import keras
import numpy as np
import pytest
from steps import BACKEND, bits, compiled_apply, number, numbers, tensors, variables

from deepseek_hpf.dtypes import FORMATS
from deepseek_hpf.optimizers import clipping
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.optimizers.saved_order import saved_order
from deepseek_hpf.optimizers.variable_figures import SAMPLE, sample_size

pytestmark = pytest.mark.slow_with("jax")

FIELDS = ("gradient_norm", "largest", "underflow", "update_norm", "weight_norm", "lost_updates")
SHAPES = [(3, 4), (5,), (), (1, 1)]


def random_values(random, spread=1.0):
    """Numbers of very different sizes, zeros among them."""
    for shape in SHAPES:
        values = random.normal(size=shape) * 10.0 ** random.uniform(-spread, spread, size=shape)
        yield np.where(random.random(shape) < 0.2, 0.0, values).astype("float32")


def reference(gradients, before, after, scale, smallest):
    """One step of one variable, in float64."""
    g, old, new = (np.asarray(a, "float64") for a in (gradients, before, after))
    pulled = g != 0
    return {
        "gradient_norm": np.linalg.norm(g.ravel()) / scale,
        "largest": np.abs(g).max(initial=0.0) / scale,
        "underflow": (np.abs(g) < smallest).mean(),
        "update_norm": np.linalg.norm((new - old).ravel()),
        "weight_norm": np.linalg.norm(old.ravel()),
        "lost_updates": (pulled & (new == old)).sum() / max(pulled.sum(), 1),
    }


def assert_as_reference(window, steps):
    """A window's statistics are the means, and the maximum, over the steps measured."""
    for index, statistics in enumerate(window.variables):
        for field in FIELDS:
            values = [step[index][field] for step in steps]
            wanted = max(values) if field == "largest" else np.mean(values)
            got = getattr(statistics, field)
            assert got == pytest.approx(wanted, rel=2e-5, abs=1e-30), (index, field)


@pytest.mark.parametrize(
    ("road", "scale"), [("compiled", None), ("compiled", 1024.0), ("eager", 1024.0)]
)
def test_a_window_is_as_in_float64(road, scale):
    random = np.random.default_rng()
    weights = variables(*random_values(random))
    # So large that a part of the updates is lost.
    weights[0].assign(weights[0] * 1e8)
    optimizer = LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=scale)
    watch = optimizer.watch_gradients(4, 2, lambda v: "float16" if v is weights[1] else "float32")
    optimizer.build(weights)
    apply = (
        compiled_apply(optimizer, weights)
        if road == "compiled"
        else lambda g: optimizer.apply(g, weights)
    )
    small = [FORMATS["float16" if i == 1 else "float32"].smallest_normal for i in range(4)]
    steps = []
    for step in range(4):
        assert watch.last_window() is None
        values = list(random_values(random, spread=6.0))
        before = numbers(weights)
        apply(tensors(*values))
        row = zip(values, before, numbers(weights), small, strict=True)
        if step % 2 == 0:
            steps.append([reference(g, old, new, scale or 1.0, s) for g, old, new, s in row])
    window = watch.last_window()
    assert (window.number, window.steps, window.skipped) == (1, 4, 0)
    assert [s.elements for s in window.variables] == [12, 5, 1, 1]
    assert_as_reference(window, steps)
    for _ in range(3):
        apply(tensors(*random_values(random)))
        assert watch.last_window() == window
    apply(tensors(*random_values(random)))
    assert watch.last_window().number == 2


def test_skipped_steps_are_counted_with_what_was_not_finite():
    weights = variables([1.0, 2.0], [[3.0], [4.0]])
    optimizer = LossScaleOptimizer("sgd", initial_scale=4.0)
    watch = optimizer.watch_gradients(3, 1)
    apply = compiled_apply(optimizer, weights)
    apply(tensors([np.inf, np.nan], [[1.0], [-np.inf]]))
    apply(tensors([4.0, 0.0], [[1.0], [1.0]]))
    apply(tensors([np.inf, 0.0], [[1.0], [1.0]]))
    window = watch.last_window()
    assert (window.steps, window.skipped) == (3, 2)
    assert [s.nonfinite for s in window.variables] == [3, 1]
    # The one finite step, under the scale that the first skip left, is all that is measured.
    assert window.variables[0].gradient_norm == pytest.approx(2.0)
    assert window.variables[0].underflow == 0.5
    assert window.variables[0].lost_updates == 0.0


def test_extreme_numbers():
    weights = variables([3e38, 1.0], [0.0, 0.0], [1e-30, 1e-30])
    optimizer = LossScaleOptimizer(keras.optimizers.SGD(1e-3), initial_scale=None)
    watch = optimizer.watch_gradients(1, 1)
    apply = compiled_apply(optimizer, weights)
    apply(tensors([3e38, 3e38], [0.0, 0.0], [1e-30, 2e-30]))
    large, nothing, small = watch.last_window().variables
    assert large.largest == pytest.approx(3e38)
    assert large.gradient_norm == pytest.approx(FORMATS["float32"].max)  # at most float32's largest
    assert nothing.underflow == 1.0
    assert (nothing.gradient_norm, nothing.update_ratio, nothing.lost_updates) == (0.0, 0.0, 0.0)
    assert small.gradient_norm == pytest.approx(5**0.5 * 1e-30)
    assert small.update_ratio == pytest.approx(1e-3 * 5**0.5 / 2**0.5, rel=1e-3)


def test_no_gradient_and_a_learning_rate_of_zero_lose_nothing():
    weights = variables([1.0], [2.0], [3.0])
    optimizer = LossScaleOptimizer(keras.optimizers.SGD(0.0), initial_scale=None)
    watch = optimizer.watch_gradients(1, 1)
    apply = compiled_apply(optimizer, weights)
    apply(tensors([1.0], None, [1e-9]))
    window = watch.last_window()
    assert [s.gradient_norm for s in window.variables] == pytest.approx([1.0, 0.0, 1e-9])
    assert [s.lost_updates for s in window.variables] == [0.0, 0.0, 0.0]


def test_updates_that_vanish_in_a_low_precision_variable():
    values = [np.full(8, 1.0)]
    gradient = np.array([1.0, 1e-9, 1e-9, 0.0, 1.0, 1e-9, 0.0, 0.0])

    def lost(**options):
        weights = variables(*values, dtype="bfloat16")
        optimizer = LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=None, **options)
        watch = optimizer.watch_gradients(1, 1)
        compiled_apply(optimizer, weights)(tensors(gradient, dtype="bfloat16"))
        return watch.last_window().variables[0].lost_updates

    assert lost() == pytest.approx(3 / 5)
    assert lost(master_weights=True) == pytest.approx(3 / 5)  # 1e-9 is lost beside 1 in float32 too


def test_a_master_starts_from_what_was_assigned_to_its_variable():
    weights = variables([1.0, 1.0], dtype="bfloat16")
    optimizer = LossScaleOptimizer("sgd", initial_scale=None, master_weights=True)
    watch = optimizer.watch_gradients(1, 1)
    apply = compiled_apply(optimizer, weights)
    weights[0].assign([3.0, 4.0])
    apply(tensors([1.0, 1.0], dtype="bfloat16"))
    (statistics,) = watch.last_window().variables
    assert statistics.weight_norm == pytest.approx(5.0)
    assert statistics.update_norm == pytest.approx(0.01 * 2**0.5, rel=1e-3)


def test_updates_of_accumulated_gradients_are_measured_when_they_happen():
    weights = variables([1.0, 1.0])
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    optimizer = LossScaleOptimizer(inner, initial_scale=8.0)
    watch = optimizer.watch_gradients(6, 2)
    apply = compiled_apply(optimizer, weights)
    for step in range(6):
        apply(tensors([8.0 * (step + 1), 0.0]))
    (statistics,) = watch.last_window().variables
    assert statistics.gradient_norm == pytest.approx((1 + 3 + 5) / 3)
    assert statistics.largest == pytest.approx(5.0)
    assert statistics.update_norm == pytest.approx(0.1 * (1 + 2 + 3) / 3)  # of the first update
    assert statistics.weight_norm == pytest.approx(2**0.5)


def test_large_variables_are_sampled_without_missing_a_column():
    random = np.random.default_rng()
    shape = (512, 128)
    assert sample_size(shape) <= SAMPLE < 512 * 128
    weights = variables(random.normal(size=shape))
    optimizer = LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=None)
    watch = optimizer.watch_gradients(1, 1)
    old = numbers(weights)[0]
    gradient = np.zeros(shape)
    gradient[:, 5] = 10.0  # one column of 128
    compiled_apply(optimizer, weights)(tensors(gradient))
    (statistics,) = watch.last_window().variables
    assert statistics.largest == 10.0
    assert statistics.underflow == pytest.approx(127 / 128)
    assert statistics.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert statistics.weight_norm == pytest.approx(np.linalg.norm(old), rel=0.05)
    assert statistics.update_norm == pytest.approx(np.linalg.norm(gradient), rel=0.1)


def saved(optimizer):
    return saved_order(optimizer.variables, optimizer.watch.variables)


OPTIMIZERS = {
    "adam": lambda: LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    "clipped": lambda: LossScaleOptimizer("sgd", clipping=clipping.Anomaly()),
    "accumulated": lambda: LossScaleOptimizer(
        keras.optimizers.AdamW(0.01, use_ema=True, gradient_accumulation_steps=2), clipping=None
    ),
    "masters": lambda: LossScaleOptimizer("rmsprop", master_weights=True),
}


def train(make, watched, jit_compile, steps_per_execution=1):
    keras.utils.set_random_seed(3)
    dtype = "bfloat16" if make is OPTIMIZERS["masters"] else "float32"
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(9, activation="relu", dtype=dtype),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers)
    optimizer = make()
    watch = optimizer.watch_gradients(3, 2) if watched else None
    options = {"steps_per_execution": steps_per_execution} if steps_per_execution > 1 else {}
    model.compile(optimizer, "mse", jit_compile=jit_compile, **options)
    random = np.random.default_rng(3)
    x = random.normal(size=(40, 6)).astype("float32")
    x[17] = np.inf
    model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0)
    return model, watch


# What takes the compilers, or JAX without its compiler, a minute is for the slow suite.
SLOW = {
    "tensorflow": {(name, True) for name in OPTIMIZERS if name != "adam"},
    "jax": {(name, False) for name in OPTIMIZERS},
    "torch": set(),
}[BACKEND]
FITS = [
    pytest.param(name, jit, marks=pytest.mark.slow if (name, jit) in SLOW else ())
    for name in OPTIMIZERS
    for jit in ((False,) if BACKEND == "torch" else (False, True))
]


@pytest.mark.parametrize(("name", "jit_compile"), FITS)
def test_fit_is_the_same_bit_by_bit(name, jit_compile):
    plain, _ = train(OPTIMIZERS[name], False, jit_compile)
    watched, watch = train(OPTIMIZERS[name], True, jit_compile)
    assert bits(watched.trainable_variables) == bits(plain.trainable_variables)
    own = saved(watched.optimizer)[:-3]
    assert bits(own) == bits(plain.optimizer.variables)
    window = watch.last_window()
    assert (window.number, window.steps) == (3, 3)
    assert len(window.variables) == 4
    assert all(s.gradient_norm > 0 and s.update_norm > 0 for s in window.variables)


@pytest.mark.backend("tensorflow", "jax")
def test_several_steps_an_execution():
    _, watch = train(OPTIMIZERS["adam"], True, None, steps_per_execution=5)
    assert watch.last_window().number == 3


def test_it_may_begin_when_the_optimizer_is_built_and_change_its_window():
    weights = variables([1.0, 2.0])
    optimizer = LossScaleOptimizer("adam")
    optimizer.build(weights)
    optimizer.apply(tensors([1.0, 1.0]), weights)
    optimizer.watch_gradients(2, 1)
    optimizer.apply(tensors([1.0, 1.0]), weights)
    count = len(optimizer.variables)
    watch = optimizer.watch_gradients(3, 1)
    assert len(optimizer.variables) == count
    for _ in range(2):
        optimizer.apply(tensors([1.0, 1.0]), weights)
    assert watch.last_window().steps == 3


def store_of(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


def test_files_with_and_without_a_watch_are_read_by_optimizers_with_and_without():
    def trained(watched):
        weights = variables([1.0, 2.0])
        optimizer = LossScaleOptimizer("adam")
        watch = optimizer.watch_gradients(2, 1) if watched else None
        optimizer.build(weights)
        return optimizer, weights, watch

    for saved_with in (False, True):
        source, weights, watch = trained(saved_with)
        for _ in range(3):
            source.apply(tensors([1.0, 3.0]), weights)
        store = store_of(source)
        for read_with in (False, True):
            other, _, other_watch = trained(read_with)
            other.load_own_variables(store)
            core = len(source.variables) - (3 if saved_with else 0)
            assert bits(saved(other)[:core]) == bits(saved(source)[:core])
            if saved_with and read_with:
                assert other_watch.last_window() == watch.last_window()
    plain = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    plain.build(variables([1.0, 2.0]))
    other, _, _ = trained(True)
    plain.dynamic_scale.assign(512.0)
    other.load_own_variables(store_of(plain))
    assert number(other.dynamic_scale) == 512.0
    with pytest.warns(UserWarning, match="optimizer"):
        other.load_own_variables({"0": np.zeros(())})


def test_it_is_off_by_default_and_not_in_the_config():
    weights = variables([1.0])
    optimizer = LossScaleOptimizer("sgd")
    optimizer.build(weights)
    assert not any("watched" in v.path for v in optimizer.variables)
    assert optimizer.watch.variables == ()
    before = optimizer.get_config()
    optimizer.watch_gradients()
    assert optimizer.get_config() == before


def test_an_embedding_whose_rows_occur_twice_is_measured_in_fit():
    """Under TensorFlow its gradient is rows, whose dense shape is known only as the step runs."""
    random = np.random.default_rng()
    embedding = keras.layers.Embedding(7, 3)
    model = keras.Sequential([keras.Input((2,), dtype="int32"), embedding, keras.layers.Dense(1)])
    optimizer = LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=None)
    watch = optimizer.watch_gradients(1, 1)
    model.compile(optimizer, "mse")
    x, y = np.array([[1, 4], [4, 4]]), random.normal(size=(2, 2, 1)).astype("float32")
    before = model.get_weights()
    model.fit(x, y, batch_size=2, verbose=0)
    change = [old - new for old, new in zip(before, model.get_weights(), strict=True)]
    rows, *others = watch.last_window().variables
    assert rows.elements == 21
    assert rows.underflow == pytest.approx(15 / 21)
    for found, moved in zip([rows, *others], change, strict=True):
        assert found.update_norm == pytest.approx(np.linalg.norm(moved), rel=1e-4)
        assert found.gradient_norm == pytest.approx(np.linalg.norm(moved) / 0.1, rel=1e-3)
        assert found.lost_updates < 0.5
