"""`PrecisionProfiler`: sees the live run and changes no bit of it."""

import json
import logging

import keras
import numpy as np
import pytest

from deepseek_hpf.callbacks import PrecisionOverrides, PrecisionProfiler
from deepseek_hpf.errors import ConfigError

pytestmark = pytest.mark.slow_with("jax")

BACKEND = keras.backend.backend()


def trained(callbacks=(), epochs=2, per_execution=1, weights=False):
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="relu", name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.3, name="drop"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"], steps_per_execution=per_execution)
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 6)).astype("float32"), rng.normal(size=(20, 1)).astype("float32")
    history = model.fit(
        x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=list(callbacks),
        sample_weight=np.linspace(0.5, 1, 20, dtype="float32") if weights else None,
    )  # fmt: skip
    state = [*model.variables, *model.optimizer.variables]
    return model, history.history, [keras.ops.convert_to_numpy(each.value) for each in state]


SLOW = pytest.mark.slow
MANY = () if BACKEND == "torch" else (pytest.param(True, 2, marks=SLOW), (False, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "per_execution"), [pytest.param(False, 1, marks=SLOW), (True, 1), *MANY]
)
def test_the_training_is_bit_for_bit_the_same(weights, per_execution):
    _, history, values = trained(per_execution=per_execution, weights=weights)
    profiler = PrecisionProfiler(every=3, census=per_execution == 1 and not weights)
    _, seen_history, seen = trained([profiler], per_execution=per_execution, weights=weights)
    assert history == seen_history
    for value, other in zip(values, seen, strict=True):
        np.testing.assert_array_equal(value, other)
    assert profiler.reports
    assert {step % 3 for step in profiler.reports} == {0}
    if per_execution == 1:
        assert list(profiler.reports) == [0, 3, 6, 9]


def test_the_reports_are_of_the_live_weights():
    profiler = PrecisionProfiler(every=5, census=False)
    trained([profiler])
    first, second = (profiler.reports[step].ranges_of("first", "weight") for step in (0, 5))
    assert [row.name for row in first] == [row.name for row in second]
    assert [row.largest for row in first] != [row.largest for row in second]


def test_the_step_is_given_back():
    profiler = PrecisionProfiler(every=100, census=False, ranges=False)
    model, _, _ = trained([profiler])
    assert not hasattr(model.train_function, "profiles_for")


def test_it_stands_beside_the_guards():
    profiler = PrecisionProfiler(every=4, ranges=False)
    trained([PrecisionOverrides("mixed_bfloat16"), profiler])
    assert list(profiler.reports) == [0, 4, 8]
    assert profiler.reports[8].census.cast_count > 0


def test_it_writes_for_tensorboard_and_json(tmp_path):
    trained([PrecisionProfiler(every=8, log_dir=tmp_path / "logs", census=False)])
    names = [path.name for path in (tmp_path / "logs").iterdir()]
    assert sum("tfevents" in name for name in names) == 2
    report = json.loads((tmp_path / "logs" / "profile-8.json").read_text(encoding="utf-8"))
    assert report["layers"]


def test_a_profile_that_fails_does_not_end_the_training(monkeypatch, caplog):
    def fails(*_, **__):
        raise ConfigError("cannot look")

    monkeypatch.setattr("deepseek_hpf.callbacks.precision_profiler.profile", fails)
    profiler = PrecisionProfiler(every=5)
    with caplog.at_level(logging.WARNING):
        _, history, _ = trained([profiler])
    assert len(history["loss"]) == 2
    assert profiler.reports == {}
    assert "No profile of step 5: cannot look" in caplog.text


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None, "3"])
def test_a_wrong_interval_is_refused(every):
    with pytest.raises(ConfigError, match="`every` must be a positive integer"):
        PrecisionProfiler(every=every)
