"""No masters: updates are computed in float32 and rounded to the weight at random.

Rounded to the nearest number, an update below half the spacing of the weight is lost, each time.
Rounded up with the probability that makes the mean exact, it arrives on average:

    E[round(w + u)] = w + u

The random bits are a hash of a seed, a counter and the place of the element. Seed and counter are
a variable of the optimizer, so that a resumed run goes on as it would have, and replicas agree.

References:
    - [Revisiting BFloat16 Training](https://arxiv.org/abs/2010.06192)
"""

import random
import threading
from typing import Any

import keras
from keras import ops

from deepseek_hpf.optimizers.masters.composed_variable import ComposedVariable
from deepseek_hpf.optimizers.masters.master import AddVariable, dtype_of, named
from deepseek_hpf.optimizers.masters.noise import noise
from deepseek_hpf.optimizers.masters.rounding import stochastically_rounded

Tensor = Any

# No variable has as many assignments in a step: the loss of one update, its decay, a constraint,
# an average.
STORES = 16


class RoundingState:
    """Seed and counter of the rounding, one for all variables of an optimizer.

    Args:
        add_variable: The optimizer's `add_variable`.
    """

    def __init__(self, add_variable: AddVariable):
        self._variable = add_variable(
            shape=(2,), dtype="int32", initializer=_seed, name="rounding_seed_and_counter"
        )

    @property
    def variable(self) -> keras.Variable:
        """Seed and counter."""
        return self._variable

    def advance(self) -> None:
        """Counts an update."""
        self._variable.assign(ops.add(ops.convert_to_tensor(self._variable), [0, 1]))


class RoundedVariable(ComposedVariable):
    """A float32 variable kept as a weight of low precision.

    Args:
        variable: The weight, a variable of the model.
        state: Seed and counter.
        stream: Number of the variable, by which its random bits differ from the others'.
    """

    def __init__(self, variable: keras.Variable, state: RoundingState, stream: int):
        self._state, self._stream = state, stream
        # By thread, as in the base class: every replica is to round alike.
        self._stores: dict[int, int] = {}
        super().__init__(variable, named(variable, "rounded"))

    def load(self) -> Tensor:
        """Widens the weight."""
        return ops.cast(ops.convert_to_tensor(self.image), "float32")

    def begin(self) -> None:
        """An update begins: its assignments are counted from 0."""
        self._stores.pop(threading.get_ident(), None)

    def store(self, value: Tensor) -> None:
        """Rounds a value to the weight."""
        state = ops.convert_to_tensor(self._state.variable)
        thread = threading.get_ident()
        done = self._stores.get(thread, 0)
        self._stores[thread] = done + 1
        stream = self._stream * STORES + done % STORES
        drawn = noise(tuple(self.image.shape), state[0], state[1], stream)
        dtype = dtype_of(self.image)
        self.image.assign(stochastically_rounded(value, dtype, drawn))


class RoundedWeight:
    """A weight of low precision that is updated in float32 and rounded at random.

    Args:
        variable: A float16 or bfloat16 variable.
        state: Seed and counter.
        stream: Number of the variable.
    """

    def __init__(self, variable: keras.Variable, state: RoundingState, stream: int):
        self.variable = variable
        self.target = RoundedVariable(variable, state, stream)

    def weights(self) -> Tensor:
        """Returns the weight, float32."""
        return ops.convert_to_tensor(self.target.current)

    def begin(self, *, branches: bool) -> None:
        """Widens the weight, once for the whole update where no branch forbids it."""
        self.target.begin()
        if not branches:
            self.target.hold()

    def end(self) -> None:
        """Rounds, once."""
        self.target.release()

    def take_over(self, value: Tensor) -> None:
        """Leaves the weight as it is: the value's image."""


def _seed(shape: Any, dtype: Any = None) -> Tensor:
    # As Keras seeds its generators: from what `keras.utils.set_random_seed` has set.
    return ops.convert_to_tensor([random.randint(1, 10**9), 0], dtype)
