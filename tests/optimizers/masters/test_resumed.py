"""What is saved is everything: a resumed run ends with the bits of one that was not interrupted."""

import keras
import numpy as np
import pytest
from steps import bits

from deepseek_hpf.adapters.apply import apply_policy
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.optimizers import Adam8bit, AdamW8bit
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.optimizers.wrap import wrap_optimizer
from deepseek_hpf.policy import MixedPrecisionPolicy

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 12)).astype("float32")
Y = X[:, :1] * 2.0
CASES = {
    "split": ("split", lambda: keras.optimizers.Adam(0.01)),
    "stochastic": ("stochastic", lambda: keras.optimizers.SGD(0.01, momentum=0.9)),
    "8bit": ("stochastic", lambda: AdamW8bit(0.01, min_8bit_size=100)),
}


def make_model(case):
    keras.utils.set_random_seed(3)
    form, inner = CASES[case]
    layers = [keras.layers.Dense(20, "relu", dtype="bfloat16"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((12,)), *layers])
    model.compile(LossScaleOptimizer(inner(), 64.0, master_weights=form), "mse")
    return model


def fit(model, epochs=1, **arguments):
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, **arguments)
    return model


def everything(model):
    return bits([*model.weights, *model.optimizer.variables])


@pytest.mark.parametrize(
    "case", ["8bit", *(pytest.param(c, marks=pytest.mark.slow) for c in ("split", "stochastic"))]
)
def test_a_model_from_a_file_goes_on_with_the_same_bits(case, tmp_path):
    model = fit(make_model(case))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.master_weights == CASES[case][0]
    assert type(loaded.optimizer.inner_optimizer) is type(model.optimizer.inner_optimizer)
    assert everything(loaded) == everything(model)
    assert everything(fit(loaded)) == everything(fit(model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.parametrize("case", CASES)
def test_weights_loaded_before_the_optimizer_is_built(case, tmp_path):
    model = fit(make_model(case))
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = make_model(case)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert everything(fit(fresh)) == everything(fit(model))


class Interruption(Exception):
    pass


class InterruptAt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 5:
            raise Interruption


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_is_resumed_with_the_same_bits(case, tmp_path):
    from deepseek_hpf.callbacks import BackupAndRestore

    whole = everything(fit(make_model(case), 3))
    with pytest.raises(Interruption):
        fit(make_model(case), 3, callbacks=[BackupAndRestore(tmp_path, 1), InterruptAt()])
    assert everything(fit(make_model(case), 3, callbacks=[BackupAndRestore(tmp_path, 1)])) == whole


def test_one_form_goes_on_from_another():
    kept = {}
    random = np.random.default_rng(1)
    w = [keras.Variable(random.normal(size=(5, 4)), dtype="bfloat16", name="w")]
    optimizer = LossScaleOptimizer(keras.optimizers.SGD(0.01), master_weights=True)
    optimizer.build(w)
    master = random.normal(size=(5, 4)).astype("float32")
    optimizer.master(w[0]).take_over(master)
    optimizer.master(w[0]).end()
    image = bits(w)
    for form in ("split", True, "stochastic", "split", "stochastic"):
        config = PrecisionConfig(master_weights=form)
        optimizer = wrap_optimizer(optimizer, config, scales_loss=True)
        assert optimizer.master_weights == form
        assert bits(w) == image
        kept.setdefault(form, bits([optimizer.target(w[0])]))
    assert kept["split"] == kept[True] == bits([master])
    assert kept["stochastic"] == image


@pytest.mark.parametrize("form", ["split", "stochastic"])
def test_the_key_of_the_configuration_reaches_the_optimizer(form):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(20), keras.layers.Dense(1)])
    model.compile(Adam8bit(0.01, min_8bit_size=100), "mse")
    policy = MixedPrecisionPolicy(None, config=PrecisionConfig(master_weights=form))
    report = apply_policy(model, policy)
    assert model.optimizer.master_weights == form
    fit(model)
    assert type(model.optimizer.inner_optimizer) is Adam8bit
    report.revert()
    assert type(model.optimizer) is Adam8bit
