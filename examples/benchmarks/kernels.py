"""Each kernel on and off in training steps of a model where it matters, as a ratio of times.

A model without the kernel and one with it run in turns within each round, so that what else the
machine does hits both. A ratio above 1 means that the kernel pays. TensorFlow on a CPU only.
"""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

SIZE = 16  # examples in a batch
WORTH = {
    "depthwise convolution": ("MobileNetV2", "EfficientNetV2B0"),
    "grouped convolution": ("ConvNeXtTiny",),
    "activation": ("EfficientNetV2B0", "ConvNeXtTiny", "transformer"),
    "layer normalization": ("ConvNeXtTiny", "transformer"),
    "LSTM": ("LSTM",),
}
# Behind this, the time of a ConvNeXt is that of its grouped convolutions.
ALWAYS = {"ConvNeXtTiny": {"grouped convolution"}}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", choices=WORTH, help="this one only")
    parser.add_argument("--policy", choices=("mixed_bfloat16", "float32"), default="mixed_bfloat16")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of timings")
    parser.add_argument("--json", action="store_true", help="print lines of JSON")
    return parser.parse_args()


def transformer() -> Any:
    """Four blocks of width 256 over 128 positions."""
    import keras

    inputs = x = keras.Input((128, 256))
    for _ in range(4):
        h = keras.layers.LayerNormalization()(x)
        x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(8, 32)(h, h)])
        h = keras.layers.LayerNormalization()(x)
        h = keras.layers.Dense(1024, activation="gelu")(h)
        x = keras.layers.Add()([x, keras.layers.Dense(256)(h)])
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax", dtype="float32")(x))


def lstm() -> Any:
    """Two layers of 256 units over 64 steps."""
    import keras

    inputs = keras.Input((64, 64))
    x = keras.layers.LSTM(256, return_sequences=True)(inputs)
    x = keras.layers.LSTM(256)(x)
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax", dtype="float32")(x))


def make_model(name: str) -> Any:
    """Builds a model under the global policy."""
    import keras

    if name in ("transformer", "LSTM"):
        return transformer() if name == "transformer" else lstm()
    side = 64 if name == "ConvNeXtTiny" else 96
    application = getattr(keras.applications, name)
    return application(weights=None, input_shape=(side, side, 3), classes=10)


def install(model: Any, names: set[str]) -> int:
    """Puts the named kernels on the layers that do not refuse them, and counts these."""
    from deepseek_hpf.adapters.kernels.candidates_tensorflow import candidates

    count = 0
    for layer in model._flatten_layers():
        for name, kernel in candidates(layer).items():
            if name in names and kernel.refuses(layer) is None:
                layer.call = kernel.wrap(layer, layer.call)
                count += 1
                break
    return count


def make_step(model: Any) -> Callable[[], object]:
    """Returns a function that trains one step on made-up data."""
    import numpy as np

    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    rng = np.random.default_rng(0)
    x = rng.random((SIZE, *model.input_shape[1:]), dtype="float32")
    y = rng.integers(0, 10, SIZE)
    return lambda: model.train_on_batch(x, y)


def compare(kernel: str, model_name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times a model without and with a kernel."""
    import keras

    from deepseek_hpf.timing import time_in_turns

    keras.config.set_dtype_policy(options.policy)
    always = ALWAYS.get(model_name, set()) - {kernel}
    off, on = make_model(model_name), make_model(model_name)
    others = install(off, always)
    layers = install(on, always | {kernel})
    timings = time_in_turns(
        {"off": make_step(off), "on": make_step(on)}, rounds=options.rounds, warm_up=3
    )
    ratio = timings.speedup("on", over="off")
    return {
        "kernel": kernel,
        "model": model_name,
        "policy": options.policy,
        "layers": layers - others,
        "off_seconds": timings.spread("off").median,
        "on_seconds": timings.spread("on").median,
        "ratio": ratio.median,
        "quartiles": [ratio.low, ratio.high],
    }


def main() -> None:
    """Prints a line for each kernel and model."""
    options = arguments()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    for kernel in [options.kernel] if options.kernel else WORTH:
        for model_name in WORTH[kernel]:
            row = compare(kernel, model_name, options)
            if options.json:
                print(json.dumps(row), flush=True)
                continue
            low, high = row["quartiles"]
            print(
                f"{kernel:22} {model_name:17} {row['layers']:3} layers  "
                f"{row['off_seconds']:.3f} s -> {row['on_seconds']:.3f} s  "
                f"ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
