"""`DynamicPrecision`: a policy whose precision follows the training."""

import os
from collections.abc import Mapping
from typing import Any

import keras

from deepseek_hpf.adapters.apply import apply_policy
from deepseek_hpf.adapters.report import OverrideReport
from deepseek_hpf.callbacks.precision_overrides import PrecisionOverrides
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.config_wording import shown
from deepseek_hpf.distributed.keras_processes import agreed
from deepseek_hpf.dynamic.control import MakeController
from deepseek_hpf.dynamic.event_log import EventLog
from deepseek_hpf.dynamic.history import EventHistory
from deepseek_hpf.dynamic.run import DynamicRun
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.policy import MixedPrecisionPolicy
from deepseek_hpf.scheduling.controllers.controller import Controller
from deepseek_hpf.scheduling.controllers.create import create_controller


class DynamicPrecision(PrecisionOverrides):
    """Applies a policy, watches the run, and moves layers between precisions while it trains.

    It does what `PrecisionOverrides` does; no other callback is needed. Then, between the steps of
    `fit`:

    - After a skipped step it finds out which layer first produced the inf or NaN, forward or
      backward, and whether the loss scale, an activation, or bad data was the cause.
    - Every `every` steps it reads what the compiled step has measured: gradients, underflow, and
      updates lost in rounding, layer by layer.
    - A controller decides on a plan, and the next step runs under it. A plan seen before is not
      traced again, and evaluation and prediction follow. Where a layer is promoted because it
      overflowed, the loss scale stays what it was.

    The layers that compute low move in blocks between the policy and float32. As long as none
    moves, training is bit for bit what it is with `PrecisionOverrides`. After training the model
    stays in its last plan, and a later `fit` with the same callback goes on from there;
    `report.revert()` takes everything back.

    A model that `fit` finds unbuilt is built before its first step, so that the controller has it
    from the first step on. One that only its first step can build (under TensorFlow, where `call`
    does not run on symbolic inputs) runs that step under the policy and its rules; a warning in the
    log says so.

    While a layer computes in float16, the host reads one scalar at each step, and so waits for it.

    Every decision is an event with its reason: in the log at INFO, in
    `history.history["precision_events"]` (a list for each epoch), and where `events` and `log_dir`
    say. `precision_switches` in the logs counts the plans switched to so far.

    `callbacks.BackupAndRestore` saves its state, and so does a `.keras` file with the optimizer.

    Args:
        policy: As for `PrecisionOverrides`. The section "dynamic" of its configuration holds the
            settings; without one the defaults of `DynamicConfig` hold.
        controller: Name of a controller, in place of the configuration's; or a `Controller`; or a
            function that makes one of a `PlanSpace` and a `DynamicConfig`.
        events: File to which events are written as JSON lines, for `hpf events FILE`.
        log_dir: Folder for TensorBoard's events.

    Raises:
        ConfigError: The policy is not one that a model can train under, there is no controller of
            that name, or its settings are missing.
        ConfigTypeError: It is not a policy, or not a controller.

    Attributes:
        report: The `OverrideReport` of the policy; None before `fit`.

    Example:
        >>> import numpy as np, keras
        >>> from deepseek_hpf.callbacks import DynamicPrecision
        >>> first = keras.layers.Dense(8, kernel_initializer="ones", name="first")
        >>> layers = [first, keras.layers.Rescaling(1e-6), keras.layers.Dense(1)]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.full((8, 4), 2e4), np.ones((8, 1))  # 4 * 2e4 is beyond float16
        >>> dynamic = DynamicPrecision("mixed_float16")
        >>> history = model.fit(x, y, batch_size=2, verbose=0, callbacks=[dynamic])
        >>> [(e["kind"], e["step"]) for e in history.history["precision_events"][0]][:3]
        [('overflow', 0), ('promote', 1), ('scale', 1)]
        >>> first.compute_dtype
        'float32'
    """

    backup_name = "dynamic_precision"

    def __init__(
        self,
        policy: MixedPrecisionPolicy | keras.DTypePolicy | PrecisionConfig | str,
        controller: Controller | MakeController | str | None = None,
        *,
        events: str | os.PathLike[str] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(policy)
        config = self.policy.config.dynamic or DynamicConfig()
        if isinstance(controller, str):
            config = config.replace(controller=controller)
        self._config = config
        self._make_controller = _maker(controller)
        self._paths = (events, log_dir)
        self._run: DynamicRun | None = None
        self._history = EventHistory()
        self._events = EventLog(None)

    def set_model(self, model: keras.Model) -> None:
        """Applies the policy, and has the steps measured.

        Args:
            model: The model.
        """
        if self._run is None or self._run.model is not model:
            make_controller = agreed(self._make_controller, model)
            self._run = DynamicRun(model, self._config, make_controller)
        self._run.step_aside()
        super().set_model(model)
        if self.report is not None:
            self._run.take_over(self.report)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the files of events."""
        super().on_train_begin(logs)
        self._events.close()  # of a `fit` that was interrupted
        self._events = EventLog(*self._paths)
        self._running.tell(self._events)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes note of the epoch."""
        self._running.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the steps since the last call, and switches the plan for the next one."""
        super().on_train_batch_begin(batch, logs)
        self._running.before_step(batch)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Stops the clock."""
        self._running.pause()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the last steps; gives the epoch's events to the history."""
        super().on_epoch_end(epoch, logs)
        run = self._running
        run.end_epoch()
        self._history.end_epoch(self.model, logs, self._events.recent(), run.switches)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the files of events."""
        self._events.close()

    def get_state(self) -> dict[str, Any]:
        """Returns what a backup holds: controller, plan, predictive scale, and where it stands."""
        state = self._running.get_state()
        waiting = self._history.get_state(self._events.recent(), self._running.switches)
        return {**state, "history": waiting}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `get_state` returned.

        Args:
            state: The state.

        Raises:
            ConfigError: It is of another controller, or of other blocks.
        """
        self._running.set_state(state)
        self._history.set_state(state["history"])

    @property
    def _running(self) -> DynamicRun:
        if self._run is None:
            raise ConfigError("expected a callback that `fit` has been given. Received: a new one.")
        return self._run

    def _apply(self, model: keras.Model) -> OverrideReport:
        return apply_policy(model, self.policy, dynamic=True)


def _maker(controller: object) -> MakeController:
    if controller is None or isinstance(controller, str):
        return lambda space, config: create_controller(config, space)
    if isinstance(controller, Controller):
        return lambda space, config: controller
    if callable(controller):
        return controller
    raise ConfigTypeError(
        "Expected `controller` to be the name of a controller, a Controller, or a function that "
        f"makes one. Received: controller={shown(controller)} (of type {type(controller).__name__})"
    )
