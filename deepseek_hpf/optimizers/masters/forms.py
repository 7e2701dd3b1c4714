"""Which form of masters an optimizer has, by the value of its argument `master_weights`."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import keras

from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.optimizers.masters.float32 import Float32Master
from deepseek_hpf.optimizers.masters.master import AddVariable, Master, dtype_of
from deepseek_hpf.optimizers.masters.split import SplitMaster
from deepseek_hpf.optimizers.masters.stochastic import RoundedWeight, RoundingState

logger = logging.getLogger(__name__)

LOW_PRECISION = ("float16", "bfloat16")


class NoMasters:
    """Every variable is trained as it is."""

    argument: ClassVar[bool | str] = False

    def create(
        self, variables: Sequence[keras.Variable], add_variable: AddVariable, *, tracing: bool
    ) -> list[Master]:
        """Creates what is kept of the variables that need it, among the optimizer's variables.

        Args:
            variables: The trainable variables of the model.
            add_variable: The optimizer's `add_variable`.
            tracing: Whether this happens within a graph, where a value cannot be read.

        Returns:
            One for each variable that needs it.
        """
        return []

    def after_update(self) -> None:
        """Counts an update, where there is anything to count."""

    @property
    def variables(self) -> list[keras.Variable]:
        """What is kept for all variables together."""
        return []


class Float32Masters(NoMasters):
    """A float32 master beside each weight of low precision: 6 bytes together."""

    argument: ClassVar[bool | str] = True

    def create(
        self, variables: Sequence[keras.Variable], add_variable: AddVariable, *, tracing: bool
    ) -> list[Master]:
        """Creates the masters."""
        needing = filter(needs_master, variables)
        return [Float32Master(variable, add_variable, tracing=tracing) for variable in needing]


class SplitMasters(NoMasters):
    """The bits of float32 that a bfloat16 weight lacks: 4 bytes together.

    A float16 weight is no half of a float32 number; it has a float32 master.
    """

    argument: ClassVar[bool | str] = "split"

    def create(
        self, variables: Sequence[keras.Variable], add_variable: AddVariable, *, tracing: bool
    ) -> list[Master]:
        """Creates the masters."""
        needing = list(filter(needs_master, variables))
        whole = [variable for variable in needing if dtype_of(variable) != "bfloat16"]
        if whole:
            logger.info(
                'master_weights="split" parts bfloat16 variables. %d of %d variables are float16 '
                "and have float32 masters.",
                len(whole),
                len(needing),
            )
        return [
            SplitMaster(variable, add_variable)
            if dtype_of(variable) == "bfloat16"
            else Float32Master(variable, add_variable, tracing=tracing)
            for variable in needing
        ]


class StochasticRounding(NoMasters):
    """Weights alone, which updates are rounded to at random: 2 bytes."""

    argument: ClassVar[bool | str] = "stochastic"
    _state: RoundingState | None = None

    def create(
        self, variables: Sequence[keras.Variable], add_variable: AddVariable, *, tracing: bool
    ) -> list[Master]:
        """Creates the seed and the counter."""
        needing = list(filter(needs_master, variables))
        state = self._state = RoundingState(add_variable) if needing else None
        if state is None:
            return []
        return [RoundedWeight(variable, state, place) for place, variable in enumerate(needing)]

    def after_update(self) -> None:
        """Counts an update, so that the next one is rounded by other random bits."""
        if self._state is not None:
            self._state.advance()

    @property
    def variables(self) -> list[keras.Variable]:
        """Seed and counter."""
        return [] if self._state is None else [self._state.variable]


FORMS = (NoMasters, Float32Masters, SplitMasters, StochasticRounding)


def form_of(argument: Any) -> NoMasters:
    """Returns a new form of masters.

    Args:
        argument: `master_weights` as the user gave it.

    Raises:
        ConfigError: There is no such form.
    """
    wanted = (
        'Argument `master_weights` must be True or False, "split" or "stochastic". Received: '
        f"master_weights={argument!r}"
    )
    if not isinstance(argument, bool | str):
        raise ConfigTypeError(f"{wanted} (of type {type(argument).__name__})")
    for form in FORMS:
        if form.argument is argument or form.argument == argument:
            return form()
    raise ConfigError(wanted)


def needs_master(variable: keras.Variable) -> bool:
    """Returns whether a variable is of low precision and trained by adding to it.

    float32 and float64 variables are their own masters; what is overwritten with its gradient (the
    scales of float8 layers) has no update that could be lost.
    """
    overwritten = getattr(variable, "overwrite_with_gradient", False)
    return dtype_of(variable) in LOW_PRECISION and not overwritten


def exclude_alike(inner_optimizer: keras.optimizers.Optimizer, masters: Sequence[Master]) -> None:
    """Decays a master exactly if its variable would be, by `exclude_from_weight_decay`."""
    if inner_optimizer.weight_decay is None:
        return
    for master in masters:
        decays = inner_optimizer._use_weight_decay(master.variable)
        key = inner_optimizer._var_key(master.target)
        inner_optimizer._exclude_from_weight_decay_cache[key] = decays
