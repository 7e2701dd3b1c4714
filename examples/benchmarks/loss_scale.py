"""The optimizer step of our LossScaleOptimizer against Keras's, as a ratio of times.

Keras's wrapper checks and unscales; ours checks, measures the norm, clips by it, unscales and
counts. Both get the same gradients for the variables of ResNet-50, in turns within each round, so
that what else the machine does hits both. A ratio below 1 means that ours is faster.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

Step = Callable[[], None]


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"))
    parser.add_argument("--optimizer", default="adam", help="name of the inner optimizer")
    parser.add_argument("--rounds", type=int, default=30, help="pairs of timings")
    parser.add_argument("--steps", type=int, default=5, help="steps in a timing")
    parser.add_argument("--json", action="store_true", help="print one line of JSON only")
    return parser.parse_args()


def resnet_variables() -> list[Any]:
    """Makes a fresh set of ResNet-50's trainable variables."""
    import keras

    return keras.applications.ResNet50(weights=None).trainable_variables


def make_step(optimizer: Any, variables: list[Any], gradients: list[Any]) -> Step:
    """Returns a function that runs one step of the optimizer, and waits for its end."""
    import keras

    optimizer.build(variables)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return tensorflow_step(optimizer, variables, gradients)
    if backend == "jax":
        return jax_step(optimizer, variables, gradients)
    return lambda: optimizer.apply(gradients, variables)


def tensorflow_step(optimizer: Any, variables: list[Any], gradients: list[Any]) -> Step:
    """Returns a step inside a `tf.function` that XLA does not compile."""
    import tensorflow as tf

    @tf.function(jit_compile=False)
    def step(gradients: list[Any]) -> Any:
        optimizer.apply(gradients, variables)
        return tf.identity(optimizer.iterations)

    return lambda: step(gradients).numpy()


def jax_step(optimizer: Any, variables: list[Any], gradients: list[Any]) -> Step:
    """Returns a step compiled by `jax.jit`, which may reuse its inputs, as in `fit`."""
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
    # Donated buffers are gone afterwards: both optimizers start from the same variables.
    own = [jnp.array(variable.value, copy=True) for variable in optimizer.variables]
    trainable = [jnp.array(variable.value, copy=True) for variable in variables]
    state = [own, trainable]

    def step() -> None:
        trainable, own = compiled(state[0], gradients, state[1])
        jax.block_until_ready(own)
        state[:] = [own, trainable]

    return step


def measure(step: Step, steps: int) -> float:
    """Returns seconds a step."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def compare(optimizer: str, rounds: int, steps: int) -> dict[str, Any]:
    """Times both optimizers in turns.

    Returns:
        Median seconds a step of each, median and quartiles of the paired ratios, and seconds of
        each first step, in which it is traced and compiled.
    """
    import keras
    import numpy as np

    import deepseek_hpf as hpf

    get = keras.optimizers.get
    wrappers = {
        "keras": keras.optimizers.LossScaleOptimizer(get(optimizer)),
        "hpf": hpf.LossScaleOptimizer(get(optimizer), clipping=hpf.clipping.GlobalNorm(1.0)),
    }
    random = np.random.default_rng(0)
    timed: dict[str, Step] = {}
    first: dict[str, float] = {}
    for name, wrapper in wrappers.items():
        variables = resnet_variables()
        gradients = [
            keras.ops.convert_to_tensor(random.normal(size=v.shape).astype("float32"))
            for v in variables
        ]
        timed[name] = make_step(wrapper, variables, gradients)
        first[name] = measure(timed[name], 1)
        measure(timed[name], 2)
    seconds: dict[str, list[float]] = {"keras": [], "hpf": []}
    for number in range(rounds):
        order = ("keras", "hpf") if number % 2 else ("hpf", "keras")
        for name in order:
            seconds[name].append(measure(timed[name], steps))
    ratios = [ours / theirs for ours, theirs in zip(seconds["hpf"], seconds["keras"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "backend": keras.backend.backend(),
        "optimizer": optimizer,
        "rounds": rounds,
        "keras_seconds": statistics.median(seconds["keras"]),
        "hpf_seconds": statistics.median(seconds["hpf"]),
        "keras_first_seconds": first["keras"],
        "hpf_first_seconds": first["hpf"],
        "ratio": median,
        "ratio_quartiles": [low, high],
    }


def main() -> None:
    """Prints the comparison."""
    given = arguments()
    if given.backend:
        os.environ["KERAS_BACKEND"] = given.backend
    result = compare(given.optimizer, given.rounds, given.steps)
    if given.json:
        print(json.dumps(result))
        return
    low, high = result["ratio_quartiles"]
    print(f"ResNet-50's variables, {result['optimizer']}, {result['backend']}, a step:")
    for name, label in (("keras", "Keras's wrapper, no clipping"), ("hpf", "ours, with clipping")):
        milliseconds = 1e3 * result[f"{name}_seconds"]
        print(
            f"  {label:30} {milliseconds:8.1f} ms  (first {result[f'{name}_first_seconds']:.1f} s)"
        )
    print(f"  ratio, ours to Keras's: {result['ratio']:.2f} (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
