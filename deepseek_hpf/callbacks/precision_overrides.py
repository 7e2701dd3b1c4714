"""`PrecisionOverrides`: applies a policy to the model that `fit` is about to train."""

import logging
from typing import Any

import keras

from deepseek_hpf.adapters.apply import apply_policy, as_policy
from deepseek_hpf.adapters.report import OverrideReport
from deepseek_hpf.adapters.training_watch import TrainingWatch
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.distributed.keras_processes import check_processes
from deepseek_hpf.policy import MixedPrecisionPolicy

logger = logging.getLogger(__name__)


class PrecisionOverrides(keras.callbacks.Callback):
    """Brings the rules of a policy, and its protections, to a model that is trained with `fit`.

    It calls `apply_policy` when `fit` hands it the model: before the training step is compiled, and
    before any callback restores a state, whatever the order of the callbacks. A model that is
    fitted again, or compiled again and fitted, is treated again where that is needed. Skipped steps
    that are no overflow (bad data, a loss that is not finite, the scale on its floor) are warned of
    once each. The report is logged once, at INFO. After training the model stays as it is;
    `report.revert()` takes everything back.

    Args:
        policy: A `MixedPrecisionPolicy`, the name of a policy, a plain `keras.DTypePolicy`, or a
            configuration.

    Raises:
        ConfigError: It is not a policy that a model can train under.
        ConfigTypeError: It is not a policy.

    Attributes:
        report: The `OverrideReport`; None before `fit`.

    Example:
        >>> import numpy as np, keras
        >>> from deepseek_hpf.callbacks import PrecisionOverrides
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="head")])
        >>> model.compile("sgd", "mse")
        >>> overrides = PrecisionOverrides("mixed_bfloat16")
        >>> _ = model.fit(np.ones((2, 4)), np.ones((2, 1)), verbose=0, callbacks=[overrides])
        >>> overrides.report.row("head").after
        'float32'
    """

    def __init__(
        self, policy: MixedPrecisionPolicy | keras.DTypePolicy | PrecisionConfig | str
    ) -> None:
        super().__init__()
        self.policy = as_policy(policy)
        self.report: OverrideReport | None = None
        self._watch: TrainingWatch | None = None
        self._is_logged = False

    def set_model(self, model: keras.Model) -> None:
        """Applies the policy.

        Args:
            model: The model.

        Raises:
            ConfigError: Of several processes one has another policy or configuration.
            PrecisionError: Several processes would not train one model.
        """
        super().set_model(model)
        check_processes(model, self.policy)
        self.report = self._apply(model)
        if self._watch is None or self._watch.model is not model:
            self._watch = TrainingWatch(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Logs the report, unless the model is built by its first step and has not all its rows."""
        if self.report is not None and self.report.is_complete:
            self._log()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Keeps the optimizer's figures readable, and looks at the causes of skips now and then."""
        if self._watch is not None:
            self._watch.on_batch_begin()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Warns of skips that are no overflow; logs the report of a model just built."""
        if self._watch is not None:
            self._watch.on_epoch_end()
        self._log()

    def _apply(self, model: keras.Model) -> OverrideReport:
        return apply_policy(model, self.policy)

    def _log(self) -> None:
        if not self._is_logged:
            self._is_logged = True
            logger.info("Precision overrides:\n%s", self.report)
