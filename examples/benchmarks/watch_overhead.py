"""What the watch over gradients and updates costs a training step, as a ratio of times.

Three copies of a model train in turns within each round, so that what else the machine does hits
all: without a watch, with one that measures none of the steps, and with one that measures each.
With 1 step of N measured (--sample-every, 25 by default) a step costs on average

    ((N - 1) * unmeasured + measured) / N

A ratio of 1.02 means that a step with the watch takes 2 % longer than without. Of each ratio the
median over the rounds is printed, with its 95 % interval (by resampling the rounds), by the clock
and by processor time, which counts less of what other programs do.
"""

import argparse
import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MODELS = ("resnet50", "mlp", "gpt")
NEVER = 10**9
# The very first step of a process takes longer: of the first steps compare the other two.
KINDS = {"unmeasured": NEVER, "off": None, "measured": 1}
CLOCKS: dict[str, Callable[[], float]] = {
    "clock": time.perf_counter,
    "processor": time.process_time,
}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--model", choices=MODELS, default="resnet50")
    parser.add_argument("--policy", default="float32", help="Keras dtype policy, and our wrapper")
    parser.add_argument("--sample-every", type=int, default=25, help="N, in steps")
    parser.add_argument("--rounds", type=int, default=20, help="timings of each")
    parser.add_argument("--steps", type=int, default=1, help="steps in a timing")
    parser.add_argument("--json", action="store_true", help="print one line of JSON only")
    return parser.parse_args()


def resnet50() -> tuple[Any, Any, Any]:
    """ResNet-50 on 16 images of 96 pixels."""
    import keras
    import numpy as np

    model = keras.applications.ResNet50(weights=None, input_shape=(96, 96, 3), classes=10)
    random = np.random.default_rng(0)
    return model, random.random((16, 96, 96, 3), "float32"), random.integers(0, 10, 16)


def mlp() -> tuple[Any, Any, Any]:
    """Three dense layers on 64 rows of 128 numbers."""
    import keras
    import numpy as np

    dense = keras.layers.Dense
    layers = [keras.Input((128,)), dense(256, "relu"), dense(256, "relu"), dense(10, "softmax")]
    random = np.random.default_rng(0)
    return keras.Sequential(layers), random.random((64, 128), "float32"), random.integers(0, 10, 64)


def gpt() -> tuple[Any, Any, Any]:
    """One transformer block of width 256 on 16 sequences of 64 tokens."""
    import keras
    import numpy as np

    layers = keras.layers
    tokens = keras.Input((64,), dtype="int32")
    x = layers.Embedding(256, 256)(tokens)
    normal = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(4, 64)(normal, normal, use_causal_mask=True)
    hidden = layers.Dense(1024, "gelu")(layers.LayerNormalization()(x))
    x = x + layers.Dense(256)(hidden)
    model = keras.Model(tokens, layers.Dense(256, "softmax")(x))
    random = np.random.default_rng(0)
    return model, random.integers(0, 256, (16, 64)), random.integers(0, 256, (16, 64))


def make_step(name: str, policy: str, sample_every: int | None) -> Callable[[], Any]:
    """Builds and compiles a model, and returns a function that trains one step and waits for it."""
    import keras

    import deepseek_hpf as hpf

    keras.config.set_dtype_policy(policy)
    model, x, y = {"resnet50": resnet50, "mlp": mlp, "gpt": gpt}[name]()
    keras.config.set_dtype_policy("float32")
    optimizer = hpf.LossScaleOptimizer("adam")
    if sample_every is not None:
        optimizer.watch_gradients(50 if sample_every == 1 else NEVER, sample_every)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return lambda: model.train_on_batch(x, y)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Times the three in turns.

    Returns:
        Seconds a step without a watch, processor seconds of each first step, and the ratios by
        both clocks.
    """
    from deepseek_hpf.timing import time_in_turns

    spent: dict[str, dict[str, list[float]]] = {c: {kind: [] for kind in KINDS} for c in CLOCKS}

    def timed(kind: str, step: Callable[[], Any]) -> None:
        before = {clock: read() for clock, read in CLOCKS.items()}
        for _ in range(options.steps):
            step()
        for clock, read in CLOCKS.items():
            spent[clock][kind].append((read() - before[clock]) / options.steps)

    steps = {k: make_step(options.model, options.policy, every) for k, every in KINDS.items()}
    first = {}
    for kind, step in steps.items():
        begin = time.process_time()
        step()  # the first step of a window is measured in any case
        first[kind] = time.process_time() - begin
    works = {kind: functools.partial(timed, kind, step) for kind, step in steps.items()}
    time_in_turns(works, rounds=options.rounds, warm_up=2)
    rounds = {c: {k: times[2:] for k, times in kinds.items()} for c, kinds in spent.items()}
    return {
        "backend": options.backend,
        "model": options.model,
        "policy": options.policy,
        "off_seconds": interval(rounds["clock"]["off"])[0],
        "first_seconds": first,
        **{clock: ratios(times, options.sample_every) for clock, times in rounds.items()},
    }


def ratios(times: Mapping[str, Sequence[float]], sample_every: int) -> dict[str, list[float]]:
    """Median and interval of what the watch costs, from the ratios within each round."""
    pairs = {
        kind: [own / off for own, off in zip(times[kind], times["off"], strict=True)]
        for kind in ("unmeasured", "measured")
    }
    found = {kind: interval(values) for kind, values in pairs.items()}
    average = [
        ((sample_every - 1) * rare + each) / sample_every
        for rare, each in zip(*pairs.values(), strict=True)
    ]
    return {**found, "average": interval(average)}


def interval(values: Sequence[float]) -> list[float]:
    """Median, and its 95 % interval by resampling."""
    import numpy as np

    drawn = np.random.default_rng(0).choice(np.asarray(values), (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return [float(np.median(values)), float(low), float(high)]


def main() -> None:
    """Prints the comparison."""
    options = arguments()
    os.environ["KERAS_BACKEND"] = options.backend
    result = compare(options)
    if options.json:
        print(json.dumps(result))
        return
    first = ", ".join(
        f"{kind} {seconds:.1f} s" for kind, seconds in result["first_seconds"].items()
    )
    print(f"{options.model}, {options.policy}, {options.backend}:")
    print(f"  {result['off_seconds']:.4f} s a step without a watch")
    print(f"  first step: {first} of processor time")
    for clock in CLOCKS:
        for kind in ("average", "unmeasured", "measured"):
            median, low, high = result[clock][kind]
            print(f"  {clock:9} {kind:10} {median:.4f} ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
