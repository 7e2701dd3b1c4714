"""In which order an optimizer's variables are saved, and which of them a file is for."""

from collections.abc import Sequence

import keras

from deepseek_hpf.optimizers.gradient_watch import NAMES as WATCHED_NAMES

# What Keras's wrapper keeps of its own: iteration, learning rate, step counter, scale.
KERAS_OWN_VARIABLES = 4

Variables = list[keras.Variable]


def saved_order(
    variables: Sequence[keras.Variable], watched: Sequence[keras.Variable]
) -> Variables:
    """Puts the variables of a watch last, so that files with and without it can be read.

    Args:
        variables: All variables of the optimizer.
        watched: Those of its watch.

    Returns:
        All variables, in the order in which they are saved.
    """
    last = {id(variable) for variable in watched}
    return [*(v for v in variables if id(v) not in last), *watched]


def fitting(
    saved: Variables, inner: Variables, watched: Sequence[keras.Variable], count: int
) -> Variables | None:
    """Finds the variables that a file of so many values holds.

    Args:
        saved: What `saved_order` returned.
        inner: The variables of the inner optimizer.
        watched: Those of the watch.
        count: Number of values.

    Returns:
        The variables of the first values; those of a watch that only the file has are left over.
        None if the file is of another optimizer. Files of Keras's wrapper fit.
    """
    core = len(saved) - len(watched)
    if count in (core, core + len(WATCHED_NAMES)):
        return saved[:count]
    of_keras = saved[:KERAS_OWN_VARIABLES] + inner
    return of_keras if count == len(of_keras) else None
