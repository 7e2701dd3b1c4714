"""What the host looks at while a guarded model trains, now and then, and the warnings it gives."""

import importlib
import time
import warnings
from typing import Any

import keras

from deepseek_hpf.adapters.current_value import current_value
from deepseek_hpf.adapters.guard import skip_causes
from deepseek_hpf.adapters.skip_causes import FLOOR_RUN, protecting_optimizer
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

READABLE = (
    "dynamic_scale",
    "skipped_steps",
    "gradient_norm",
    "clipped_steps",
    "step_skipped",
    "consecutive_skips",
    "consecutive_floor_skips",
)
"""The optimizer's variables that are kept readable between the steps of `fit`."""


class TrainingWatch:
    """Keeps the optimizer's figures readable during `fit`, and warns of skips that are no overflow.

    Reading a counter makes the host wait for the device, so it is done at most once in `interval`,
    and at the end of each epoch. The counters are on the device: nothing is missed in between.
    Each warning is given once in the life of the watch.

    Args:
        model: The model being trained. Without a guard nothing is watched.
        interval: Float, in seconds. Shortest time between two looks at the counters in an epoch.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> watch = TrainingWatch(model)
        >>> watch.on_batch_begin()
    """

    def __init__(self, model: keras.Model, interval: float = 5.0):
        self.model = model
        self.interval = interval
        self._looked = time.monotonic()
        self._given: set[str] = set()

    def on_batch_begin(self) -> None:
        """To be called before each training batch; waits for nothing but once in `interval`."""
        optimizer = protecting_optimizer(self.model)
        if optimizer is None or not optimizer.built:
            return
        if keras.backend.backend() == "jax":
            _expose(self.model, optimizer)
        if time.monotonic() - self._looked >= self.interval:
            self._look(optimizer)

    def on_epoch_end(self) -> None:
        """To be called at the end of each epoch."""
        optimizer = protecting_optimizer(self.model)
        if optimizer is not None and optimizer.built:
            self._look(optimizer)

    def _look(self, optimizer: LossScaleOptimizer) -> None:
        self._looked = time.monotonic()
        causes = skip_causes(self.model)
        if causes is None or not int(current_value(self.model, optimizer.skipped_steps)):
            return
        if float(current_value(self.model, causes.bad_inputs)):
            self._warn("inputs", _BAD_INPUTS)
        if float(current_value(self.model, causes.bad_losses)):
            self._warn("loss", _BAD_LOSS)
        if float(current_value(self.model, causes.floor_runs)):
            self._warn("floor", _ON_THE_FLOOR if optimizer.scales_loss else _NO_SCALE)

    def _warn(self, key: str, text: str) -> None:
        if key not in self._given:
            self._given.add(key)
            warnings.warn(f"Model {self.model.name!r}: {text}", RuntimeWarning, stacklevel=2)


_BAD_INPUTS = (
    "a training step was skipped because its batch holds NaN or inf (in the inputs, targets or "
    "sample weights). This is bad data, not overflow, and no loss scale remedies it. Such steps "
    "leave nothing behind, but each one backs off the scale. Find the samples, e.g. with "
    "`np.isfinite(x).all()`, and clean or drop them."
)
_BAD_LOSS = (
    "a training step was skipped because its loss or metrics were NaN or inf although the batch "
    "was finite. This is no overflow of the scaled gradients, and a lower loss scale does not "
    "remedy it: either a layer overflowed in the forward pass (float16 ends at 65504), or the "
    "loss is undefined for the data (e.g. a class index out of range, a logarithm of 0, a division "
    'by 0). Compute in a wider format ("mixed_bfloat16", or float32 for the layer at fault by a '
    "rule), or correct the targets or the loss."
)
_ON_THE_FLOOR = (
    f"{FLOOR_RUN} training steps in a row were skipped with the loss scale on its floor. "
    "Batches and losses are finite, so a gradient overflows at any scale, and the model does not "
    "train. `callbacks.DynamicPrecision` finds the layer at fault and gives it a wider format. Or "
    'do so by a rule, use "mixed_bfloat16", lower the learning rate, or lower `min_scale` in the '
    "loss-scale configuration."
)
_NO_SCALE = (
    f"{FLOOR_RUN} training steps in a row were skipped because of gradients that are not finite, "
    "although batches and losses are. There is no loss scale that could be lowered: the model does "
    "not train. Look for an operation whose derivative is undefined (e.g. the square root of 0), "
    "lower the learning rate, or give the layer at fault a wider format by a rule."
)


def _expose(model: keras.Model, optimizer: LossScaleOptimizer) -> None:
    _jax().expose(model, [getattr(optimizer, name) for name in READABLE])


def _jax() -> Any:
    return importlib.import_module("deepseek_hpf.adapters.guard_jax")
