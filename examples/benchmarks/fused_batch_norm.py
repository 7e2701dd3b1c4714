"""Training steps of an image model with and without the fused batch normalization, in turns.

Each round times a step under Keras's float32 and mixed_bfloat16 and under ours, with kernels and
without, so that what else the machine does hits all. Ratios are taken within each round; above 1,
the row is faster than what it is compared with. TensorFlow only.
"""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

# Name to the policy, and whether `apply_policy` is called, with kernels or without.
ROWS: dict[str, tuple[str, bool | None]] = {
    "Keras float32": ("float32", None),
    "Keras mixed_bfloat16": ("mixed_bfloat16", None),
    "float32, kernels": ("float32", True),
    "mixed_bfloat16, no kernels": ("mixed_bfloat16", False),
    "mixed_bfloat16, kernels": ("mixed_bfloat16", True),
}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ResNet50", help="a name in keras.applications")
    parser.add_argument("--side", type=int, default=96, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=16, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=12, help="timings of each")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--json", action="store_true", help="print lines of JSON")
    return parser.parse_args()


def make_step(options: argparse.Namespace, policy: str, kernels: bool | None) -> Callable[[], Any]:
    """Builds and compiles a model, and returns a function that trains one step on made-up data."""
    import keras
    import numpy as np

    from deepseek_hpf import PrecisionConfig, apply_policy

    keras.config.set_dtype_policy(policy)
    model = getattr(keras.applications, options.model)(
        weights=None, input_shape=(options.side, options.side, 3), classes=10
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    keras.config.set_dtype_policy("float32")
    if kernels is not None:
        apply_policy(model, PrecisionConfig(policy=policy, kernels=kernels))
    rng = np.random.default_rng(0)
    x = rng.random((options.batch, options.side, options.side, 3), dtype="float32")
    y = rng.integers(0, 10, options.batch)
    return lambda: model.train_on_batch(x, y)


def main() -> None:
    """Prints a line for each way to train."""
    options = arguments()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    from deepseek_hpf.timing import time_in_turns

    steps = {name: make_step(options, *ROWS[name]) for name in options.rows}
    timings = time_in_turns(steps, rounds=options.rounds, warm_up=3)
    for name in steps:
        row: dict[str, Any] = {"row": name, "seconds": timings.spread(name).median}
        for peer in ("Keras float32", "Keras mixed_bfloat16"):
            if peer in steps:
                ratio = timings.speedup(name, over=peer)
                row[f"over {peer}"] = [ratio.median, ratio.low, ratio.high]
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        ratios = "".join(
            f"  {value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f}) {key}"
            for key, value in row.items()
            if key.startswith("over")
        )
        print(f"{name:27} {row['seconds']:.3f} s{ratios}", flush=True)


if __name__ == "__main__":
    main()
