"""`BatchSizeScheduler`: the batch grows within a run, as memory allows."""

import logging
from typing import Any, Literal, get_args

import keras

from deepseek_hpf import hardware
from deepseek_hpf.adapters.running_fit import local_of_fit
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.memory.estimating import estimate
from deepseek_hpf.memory.memory_estimate import in_units
from deepseek_hpf.memory.resizable_batches import RemadeBatches, ResizableBatches
from deepseek_hpf.optimizers.wrap import inner_of

logger = logging.getLogger(__name__)

Rule = Literal["linear", "sqrt"]


class BatchSizeScheduler(keras.callbacks.Callback):
    """Has the batch grow every so many epochs, and the learning rate with it.

    `fit` cuts arrays into batches of a size that it fixes before it begins, so give it the batches
    of this callback in their place:

    ```python
    batches = ResizableBatches(x, y, batch_size=32)
    model.fit(batches, epochs=30, callbacks=[BatchSizeScheduler(batches, every=10)])
    ```

    Before the batch grows, `memory.estimate` says what a step would need beyond what one needs now;
    if that is more than the free memory allows, the batch stays, for the rest of the run, and the
    log says so. Under JAX that compiles the step once more. The batch size is in the logs.

    A run that begins at a later epoch (`initial_epoch`, `BackupAndRestore`) begins with the size
    that it would have by then, and with the learning rate that its optimizer has.

    Args:
        batches: What `fit` is given: `memory.ResizableBatches`, or `memory.RemadeBatches` for a
            pipeline.
        every: Epochs after which the batch grows.
        factor: How many times as large it is then. At least 2.
        ceiling: Most rows; None for those of the data.
        memory: Share of the free memory that what is added may take, above 0 and at most 1; None to
            grow up to the ceiling without asking.
        learning_rate: `"linear"` multiplies it by the factor (Goyal et al. 2017), `"sqrt"` by its
            root (Hoffer et al. 2017), None leaves it: a larger batch then is in place of a decay
            (Smith et al. 2018).

    Raises:
        ConfigError: An argument is none of these; in `fit`: it is given other data, or the
            optimizer has a schedule of its own.

    Example:
        >>> import keras, numpy as np
        >>> from deepseek_hpf.callbacks import BatchSizeScheduler
        >>> from deepseek_hpf.memory import ResizableBatches
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.25), "mse")
        >>> batches = ResizableBatches(np.ones((16, 4)), np.ones((16, 1)), batch_size=4)
        >>> grow = BatchSizeScheduler(batches, memory=None)
        >>> history = model.fit(batches, epochs=3, verbose=0, callbacks=[grow])
        >>> history.history["batch_size"], float(model.optimizer.learning_rate)
        ([4, 8, 16], 1.0)

    References:
        - [Accurate, Large Minibatch SGD](https://arxiv.org/abs/1706.02677)
        - [Train longer, generalize better](https://arxiv.org/abs/1705.08741)
        - [Don't Decay the Learning Rate, Increase the Batch Size](https://arxiv.org/abs/1711.00489)
    """

    def __init__(
        self,
        batches: ResizableBatches | RemadeBatches,
        *,
        every: int = 1,
        factor: int = 2,
        ceiling: int | None = None,
        memory: float | None = 0.9,
        learning_rate: Rule | None = "linear",
    ):
        super().__init__()
        _check(batches, every, factor, ceiling, memory, learning_rate)
        self.batches = batches
        self._every = every
        self._factor = factor
        self._ceiling = batches.rows if ceiling is None else min(ceiling, batches.rows)
        self._memory = memory
        self._rule = learning_rate
        self._has_begun = False
        self._is_full = False
        self._needed: dict[int, int] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses data that do not change their size, and a learning rate that cannot be set."""
        iterator = local_of_fit(self.model, "epoch_iterator")
        given = getattr(getattr(iterator, "data_adapter", None), "py_dataset", None)
        if iterator is not None and given is not self.batches:
            raise ConfigError(
                "Expected `fit` to be given the batches of this callback, as the size of those "
                "that it makes of other data is fixed. Write `batches = ResizableBatches(x, y, "
                "batch_size=…)` and `model.fit(batches, callbacks=[BatchSizeScheduler(batches)])`; "
                "for a pipeline take `RemadeBatches`."
            )
        rate = getattr(inner_of(self.model.optimizer), "_learning_rate", None)
        if self._rule is not None and not isinstance(rate, keras.Variable):
            raise ConfigError(
                "Expected an optimizer whose learning rate is a number. Received one with the "
                f"schedule {type(rate).__name__}. Give the callback `learning_rate=None`."
            )
        self._has_begun = self._is_full = False
        self._needed.clear()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Grows the batch where it is time."""
        before = self.batches.batch_size
        if not self._has_begun:
            self._has_begun = True
            for _ in range(epoch // self._every):
                self._grow()
        elif epoch % self._every == 0 and self._grow():
            self._scale_learning_rate(self.batches.batch_size / before)
        if isinstance(self.batches, ResizableBatches):
            self.batches.epoch = epoch
        if self.batches.batch_size != before:
            self._tell_fit()
            logger.info("epoch %d: batches of %d rows", epoch, self.batches.batch_size)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the size into the logs."""
        if logs is not None:
            logs["batch_size"] = self.batches.batch_size

    def _grow(self) -> bool:
        rows = min(self.batches.batch_size * self._factor, self._ceiling)
        if self._is_full or rows <= self.batches.batch_size:
            return False
        if self._memory is not None and not self._fits(rows, self._memory):
            self._is_full = True
            return False
        self.batches.batch_size = rows
        return True

    def _fits(self, rows: int, share: float) -> bool:
        device = hardware.preferred_device(hardware.usable_devices(keras.backend.backend()))
        if device.memory_free is None:
            raise ConfigError(
                f"Expected a device whose free memory is known. Received: {device.name}, whose is "
                "not. Give the callback `ceiling=…, memory=None`."
            )
        more = self._bytes(rows) - self._bytes(self.batches.batch_size)
        allowed = share * device.memory_free
        if more > allowed:
            logger.warning(
                "The batch stays at %d rows: %d would need %s more, and %s are free to take.",
                self.batches.batch_size,
                rows,
                in_units(more),
                in_units(int(allowed)),
            )
        return more <= allowed

    def _bytes(self, rows: int) -> int:
        if rows not in self._needed:
            self._needed[rows] = estimate(self.model, rows, sample=self.batches[0]).total
        return self._needed[rows]

    def _scale_learning_rate(self, ratio: float) -> None:
        if self._rule is None:
            return
        optimizer = inner_of(self.model.optimizer)
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        optimizer.learning_rate = rate * (ratio if self._rule == "linear" else ratio**0.5)

    def _tell_fit(self) -> None:
        """Has `fit` count the batches anew; it counts them once, before the first epoch."""
        iterator = local_of_fit(self.model, "epoch_iterator")
        if iterator is None:
            return
        iterator.reset()
        self.params["steps"] = iterator.num_batches
        callbacks = local_of_fit(self.model, "callbacks")
        for callback in getattr(callbacks, "callbacks", ()):
            if isinstance(callback, keras.callbacks.ProgbarLogger):
                callback.target = iterator.num_batches


def _check(
    batches: Any, every: Any, factor: Any, ceiling: Any, memory: Any, learning_rate: Any
) -> None:
    if not isinstance(batches, ResizableBatches | RemadeBatches):
        raise ConfigError(
            "Expected `batches` to be memory.ResizableBatches, made of arrays, or "
            f"memory.RemadeBatches, made of a pipeline. Received: {type(batches).__name__}. "
            "`fit` fixes the size of other data's batches."
        )
    for name, value, least in (("every", every, 1), ("factor", factor, 2), ("ceiling", ceiling, 1)):
        if name == "ceiling" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(
                f"Expected `{name}` to be a whole number, {least} or more. Received: {value!r}"
            )
    is_share = isinstance(memory, int | float) and not isinstance(memory, bool) and 0 < memory <= 1
    if memory is not None and not is_share:
        raise ConfigError(
            f"Expected `memory` to be a share, above 0 and at most 1, or None. Received: {memory!r}"
        )
    if learning_rate is not None and learning_rate not in get_args(Rule):
        raise ConfigError(
            f'Expected `learning_rate` to be "linear", "sqrt" or None. Received: {learning_rate!r}'
        )
