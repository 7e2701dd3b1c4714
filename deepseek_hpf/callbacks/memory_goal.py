"""`MemoryGoal`: activations compressed to a goal, measured on the first batch of `fit`."""

import itertools
import logging
from collections.abc import Callable
from typing import Any

import keras

from deepseek_hpf.adapters.activation_storage import COMPRESSED
from deepseek_hpf.callbacks.precision_profiler import batch_parts, hand_back, values_in_fit
from deepseek_hpf.config_like import ConfigLike, as_config
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.memory.compress import compress_activations
from deepseek_hpf.memory.compression_report import CompressionReport
from deepseek_hpf.policy import MixedPrecisionPolicy

logger = logging.getLogger(__name__)


class MemoryGoal(keras.callbacks.Callback):
    """Has the layers keep less for the backward pass, so much as a goal asks.

    It takes the first batch that `fit` trains on, measures on it, and chooses: see
    `memory.compress_activations`. The training of that batch is already within the goal, which is
    measured without packing anything: a goal that the first batch does not fit without is none for
    this callback. The report is logged once, at INFO. After training the model stays as it is;
    `report.revert()` takes everything back. A model that is compressed already is left alone.

    Args:
        goal: Share of the bytes that may be kept, above 0 and at most 1; or a configuration with
            the key "activations", as a `PrecisionConfig`, a dictionary, the path of a JSON file, or
            the policy that has it.
        seed: Of the rounding.

    Raises:
        ConfigError: The configuration has no goal, or it is out of range. In `fit`: the goal cannot
            be met.

    Attributes:
        report: The `CompressionReport`; None before the first batch.

    Example:
        >>> import keras, numpy as np
        >>> from deepseek_hpf.callbacks import MemoryGoal
        >>> layers = [keras.layers.Dense(64, activation="gelu") for _ in range(3)]
        >>> model = keras.Sequential([keras.Input((64,)), *layers])
        >>> model.compile("sgd", "mse")
        >>> goal = MemoryGoal({"activations": {"memory_goal": 0.6}})
        >>> x = np.random.normal(size=(256, 64))
        >>> history = model.fit(x, x, batch_size=128, callbacks=[goal], verbose=0)
        >>> goal.report.bytes_after <= 0.6 * goal.report.bytes_before
        True
    """

    follows_memory_goal = True

    def __init__(self, goal: float | ConfigLike | MixedPrecisionPolicy, *, seed: int = 0):
        super().__init__()
        self.goal = _goal(goal)
        self.report: CompressionReport | None = None
        self._seed = seed

    def set_model(self, model: keras.Model) -> None:
        """Keeps the model.

        Args:
            model: The model.
        """
        super().set_model(model)
        self._trained = model  # reading Keras's `model` has JAX's `fit` hand its values back

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Puts itself before the first step."""
        function = self._trained.train_function
        if not vars(self._trained).get(COMPRESSED) and not hasattr(function, "measures_first"):
            self._trained.train_function = self._measuring()

    def _measuring(self) -> Callable[..., Any]:
        def measuring_function(*arguments: Any) -> Any:
            *state, stream = arguments  # JAX's takes its state first
            model, is_list = self._trained, isinstance(stream, list)
            # PyTorch's takes a list of batches, the others draw them.
            steps = model.steps_per_execution
            batches = stream if is_list else list(itertools.islice(stream, steps))
            model.make_train_function(force=True)
            if not batches:
                raise StopIteration
            batch = batch_parts(batches[0])
            try:
                with values_in_fit(model, state):
                    self.report = compress_activations(
                        model, memory_goal=self.goal, batch=batch, seed=self._seed
                    )
            except ConfigError:
                hand_back(model, state)
                raise
            logger.info("Activations:\n%s", self.report)
            return model.train_function(*state, batches if is_list else iter(batches))

        measuring_function.measures_first = True  # type: ignore[attr-defined]
        return measuring_function


def _goal(given: object) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool):
        config = as_config({"activations": {"memory_goal": given}})
    else:
        policy = isinstance(given, MixedPrecisionPolicy)
        config = given.config if policy else as_config(given)  # type: ignore
    if config.activations is None:
        raise ConfigError(
            'Expected a configuration with "activations": {"memory_goal": …}. Received one '
            "without that key. Give the goal as a number, e.g. MemoryGoal(0.6)."
        )
    return config.activations.memory_goal
