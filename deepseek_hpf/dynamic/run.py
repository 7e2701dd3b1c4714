"""A training under dynamic precision: when to look at what, from the first step to the last."""

import logging
from collections.abc import Mapping
from typing import Any

import keras

from deepseek_hpf.adapters.report import OverrideReport
from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.dynamic.control import Control, MakeController
from deepseek_hpf.dynamic.event_log import EventLog
from deepseek_hpf.dynamic.first_build import FirstBuild
from deepseek_hpf.dynamic.reading import MeanLoss, Reading, Stopwatch, gradient_norm
from deepseek_hpf.dynamic.skip_watch import SkipWatch
from deepseek_hpf.dynamic.skipped_step import told
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.errors import told as told_in_a_line
from deepseek_hpf.scheduling.telemetry import Telemetry

logger = logging.getLogger(__name__)


class DynamicRun:
    """Follows the training of a model, between its steps.

    While a layer computes in float16, one scalar is read at each step: how many were skipped. All
    else is read every `every` steps. In the same state it sees and does the same, so that a resumed
    training goes on as the one that was killed would have.

    Args:
        model: The model.
        config: How often to look, and the settings of the controller.
        make_controller: Makes the controller once the layers of the model are known.
    """

    def __init__(self, model: keras.Model, config: DynamicConfig, make_controller: MakeController):
        self.model = model
        self._config = config
        self._make_controller = make_controller
        self._log = EventLog(None)
        self._reading = Reading(model)
        self._skips = SkipWatch(model, self._reading)
        self._first_build = FirstBuild(model)
        self._loss = MeanLoss()
        self._stopwatch = Stopwatch()
        self._report: OverrideReport | None = None
        self._control: Control | None = None
        self._before = 0  # steps trained that the optimizer of now has not counted
        self._looked = 0  # steps that have been looked at
        self._windows = 0  # complete windows that have been looked at
        self._is_alert = False  # whether to look for skips at each step, float16 or not
        self._epoch = 0
        self._first_step: int | None = None  # of this epoch
        self._restored: tuple[int | None, int | None] | None = None
        self._is_told = False  # whether the log knows of this `fit`

    @property
    def switches(self) -> int:
        """Plans switched to, so far."""
        return self._control.switches if self._control else 0

    # In the order in which `fit` comes by.

    def step_aside(self) -> None:
        """Goes back to the plan of the policy, which is about to be applied again."""
        if self._control is not None:
            self._control.step_aside()
        elif (loaded := self._loaded()) is not None:
            for w in walk(self.model):
                if w.path in loaded["moved"]:
                    w.layer.dtype_policy = keras.DTypePolicy(loaded["moved"][w.path])

    def take_over(self, report: OverrideReport) -> None:
        """Goes on from the plan of a policy that has been applied.

        Args:
            report: Of `apply_policy`; that of a model that is not built will grow.
        """
        self._report = report
        self._first_step = self._restored = None
        self._is_told = False
        is_first, loaded = self._control is None, self._loaded()
        is_new = self._reading.watch(self._config.every, self._config.sample_every)
        if is_new:
            self._count_anew()
        if self._control is not None and self._control.space.base != report.plan:
            self._control = None
        if self._control is not None:
            self._control.return_to_plan(compiled_anew=report.changed or is_new)
        if self._begin() is not None and is_first and loaded is not None:
            self._go_on_from(loaded)
        self._reading.optimizer.run = self

    def tell(self, log: EventLog) -> None:
        """Has a log told of everything from now on."""
        self._log = log
        if self._control is not None:
            self._control.log = log

    def begin_epoch(self, epoch: int) -> None:
        """Takes note of an epoch."""
        self._epoch, self._first_step = epoch, None

    def before_step(self, batch: int) -> None:
        """Looks at the steps since the last call, and makes ready for the next one.

        Args:
            batch: Number of that step within the epoch.
        """
        if self._begin() is None:
            self._first_build.before_step()
        if (control := self._begin()) is None:
            return  # a model that only its first step can build has no layers to move yet
        step = self._step_at(batch)
        if step < self._looked:
            return  # of a resumed epoch: drawn and dropped
        self._look(control, step)
        if control.is_due(step, self._epoch):
            control.observe(Telemetry(step=step, steps=0, epoch=self._epoch))
        self._skips.before_step()
        self._stopwatch.go()

    def pause(self) -> None:
        """Something else than training begins, such as validation."""
        self._stopwatch.halt()

    def end_epoch(self) -> None:
        """Looks at the last steps of an epoch, and takes in what Keras is about to reset."""
        self._catch_up()
        self._loss.add(self._reading.loss())

    # The state.

    def get_state(self) -> dict[str, Any]:
        """Looks at the last steps, and returns all that `set_state` needs to go on from there.

        Returns:
            JSON values; empty for a model that is not built.
        """
        return self._state(self._catch_up())

    def saved_state(self) -> dict[str, Any]:
        """Returns what a file of the model holds: the same, looking at nothing, between two `fit`s.

        Returns:
            JSON values; empty for a model that is not built.
        """
        state = self._state(self._control)
        return {**state, "epoch": None, "first_step": None} if state else {}

    def _state(self, control: Control | None) -> dict[str, Any]:
        if control is None:
            return {}
        self._loss.add(self._reading.loss())
        return {
            **control.get_state(),
            "before": self._before,
            "epoch": self._epoch,
            "first_step": self._first_step,
            "looked": self._looked,
            "windows": self._windows,
            "alert": self._is_alert,
            "skipped": self._skips.seen,
            "loss": self._loss.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, in its plan.

        Args:
            state: What `get_state` of a run with the same model and settings returned.

        Raises:
            ConfigError: It is of another controller, or of other blocks.
        """
        control = self._begin()
        if not state or control is None:
            return
        control.set_state(state)
        self._restored, self._first_step = (state["epoch"], state["first_step"]), None
        self._before, self._looked = state["before"], state["looked"]
        self._windows = state["windows"]
        self._is_alert, self._skips.seen = state["alert"], state["skipped"]
        self._loss.set_state(state["loss"])
        self._skips.before_step()

    # The work.

    def _begin(self) -> Control | None:
        """Puts the controller to work as soon as the model has its layers."""
        report, optimizer = self._report, self._reading.optimizer
        is_ready = report is not None and report.is_complete and optimizer.built
        if self._control is None and report is not None and is_ready:
            self._control = Control(
                self.model, report, self._config, self._make_controller, self._log
            )
        return self._control

    def _loaded(self) -> Mapping[str, Any] | None:
        """The state that came with the file which the model was loaded from."""
        optimizer = self._reading.optimizer
        return None if optimizer is None else optimizer.loaded_run

    def _go_on_from(self, loaded: Mapping[str, Any]) -> None:
        try:
            self.set_state(loaded)
        except ConfigError as error:
            logger.warning("The controller starts anew: %s", told_in_a_line(error))

    def _count_anew(self) -> None:
        """Takes the figures of the optimizer as they are: it is new, or was loaded."""
        counted = self._reading.steps()
        self._looked = max(self._looked, counted)
        self._before = self._looked - counted
        self._windows = counted // self._config.every
        self._skips.new()

    def _step_at(self, batch: int) -> int:
        """Number of a step of this epoch."""
        if self._first_step is None and self._restored and self._restored[0] == self._epoch:
            self._first_step = self._restored[1]
        if self._first_step is None:
            self._loss.begin_epoch()
            if self._steps() < self._looked:
                self._count_anew()
            self._first_step = self._steps() - batch
        return self._first_step + batch

    def _steps(self) -> int:
        return self._before + self._reading.steps()

    def _catch_up(self) -> Control | None:
        """Looks at the last steps: an epoch has ended, or a state is to be saved."""
        control = self._begin()
        if control is not None:
            self._look(control, self._steps())
        return control

    def _look(self, control: Control, step: int) -> None:
        """Looks at the steps since the last look."""
        ran = step - self._looked
        if not self._is_told:
            self._is_told = True
            control.tell_start(self._looked, resumed=self._looked > 0)
        if ran <= 0:
            return
        if self._is_alert or control.in_float16():
            self._look_for_skips(control, step, ran)
        if (step - self._before) // self._config.every > self._windows:
            self._look_at_window(control, step, ran)
        self._looked = step
        self._stopwatch.halt()

    def _look_for_skips(self, control: Control, step: int, ran: int) -> int:
        new = self._skips.new()
        found = self._skips.look_into(step, ran) if new else None
        if found is not None:
            self._stopwatch.halt()
            overflow, scale = found
            self._log.overflow(overflow, told(overflow))
            control.observe(
                Telemetry(
                    step=step,
                    steps=0,
                    epoch=self._epoch,
                    skipped=new,
                    scale=scale,
                    overflows=(overflow,),
                )
            )
        return new

    def _look_at_window(self, control: Control, step: int, ran: int) -> None:
        found = self._reading.window()
        if found is None:
            return
        window, layers = found
        every = self._config.every
        windows = (step - self._before) // every
        covered, self._windows = (windows - self._windows) * every, windows
        telemetry = Telemetry(
            step=step,
            steps=covered,
            epoch=self._epoch,
            skipped=window.skipped,
            scale=self._reading.scale(),
            layers=layers,
            loss=self._loss.of_window(self._reading.loss()),
            step_seconds=self._stopwatch.take() / covered,
        )
        self._log.window(telemetry, gradient_norm(layers))
        control.observe(telemetry)
        # Float16 or not, after a skip each step is looked at for a window.
        self._look_for_skips(control, step, ran)
        self._is_alert = window.skipped > 0
