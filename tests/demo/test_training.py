"""One training on few images, on each back end: the two runs begin alike, and report alike."""

import keras
import numpy as np
import pytest

from deepseek_hpf.demo.records import EpochDone, RunSettings, RunStart, StepDone
from deepseek_hpf.demo.training import load_data, train
from deepseek_hpf.errors import ConfigError

SMALL = {"epochs": 1, "batch_size": 16, "image_size": 8, "limit": 80, "seed": 11}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
def test_both_runs(cache_dir, tmp_path, global_dtype_policy):
    config = tmp_path / "precision.json"
    config.write_text(
        '{"policy": "mixed_bfloat16", "rules": [{"layers": "stem*", "policy": "float32"}]}'
    )
    runs, first_losses = {}, []
    for policy, config_path in ((None, None), ("auto", str(config))):
        events, waits = [], []
        settings = RunSettings(policy=policy, config_path=config_path, cache_dir=cache_dir, **SMALL)
        got = train(settings, events.append, lambda waits=waits: waits.append(1))
        assert [type(event) for event in events] == [RunStart, *[StepDone] * 5, EpochDone]
        assert len(waits) == 1
        assert got.start == events[0]
        assert got.epochs == (events[-1],)
        assert len(got.epochs[0].step_seconds) == 5
        assert min(got.epochs[0].step_seconds) > 0
        assert np.isfinite([got.epochs[0].loss, got.epochs[0].test_loss]).all()
        assert 0 <= got.test_accuracy <= 1
        assert got.peak_memory > 50e6
        first_losses.append(events[1].loss)
        runs[policy] = got
    assert runs[None].start.initial_weights == runs["auto"].start.initial_weights
    assert runs[None].start.policy_name == "float32"
    assert runs[None].skipped_steps is None
    assert runs["auto"].start.policy_name == "mixed_bfloat16"
    assert (runs["auto"].skipped_steps, runs["auto"].dynamic_scale) == (0, None)
    # The same weights on the same batch: bfloat16's resolution, 0.8 %, over twenty layers.
    assert first_losses[0] == pytest.approx(first_losses[1], rel=0.05)
    assert keras.config.dtype_policy() == global_dtype_policy


def test_the_data_are_in_the_same_order_from_the_same_seed(cache_dir):
    def labels(seed):
        data = load_data(RunSettings(cache_dir=cache_dir, **{**SMALL, "seed": seed}))
        return [np.asarray(batch).tolist() for _, batch in data.train]

    assert labels(4) == labels(4)
    assert labels(4) != labels(5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "mixed_float61"}, "mixed_float61"),
        ({"policy": "float32", "config_path": "nowhere.json"}, "nowhere.json"),
        ({"policy": "auto", "batch_size": 5000}, "batch_size=5000"),
    ],
)
def test_settings_that_cannot_be(settings, message, cache_dir):
    with pytest.raises(ConfigError, match=message):
        train(RunSettings(cache_dir=cache_dir, **settings))
