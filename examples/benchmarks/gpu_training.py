"""Training steps of large models on one GPU: a ResNet-152 at 224 px and a GPT of 405 million.

    python examples/benchmarks/gpu_training.py --json gpu.json

For Keras's JAX and PyTorch back ends it times float32 with TF32 off and on, Keras's mixed_bfloat16
and mixed_float16, and deepseek_hpf, which tunes first. Each is a process of its own: it has the
whole memory of the GPU, and its peak is its own. Throughput is examples a second, from the median
of the rounds; a ratio is to float32 with TF32 off. In the low-precision rows, what stays in float32
may use TF32.

It runs with ROCm's builds of JAX and PyTorch too (MI250X and the like): that is not measured.
`--tiny` shrinks models and rounds until a CPU does it in a minute or two; those times mean nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

BACKENDS = ("jax", "torch")
ROWS = ("float32, TF32 off", "float32, TF32 on", "mixed_bfloat16", "mixed_float16", "deepseek_hpf")
BATCH = {"resnet152": 64, "gpt": 8}
TINY_BATCH = 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--models", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--batch", type=int, help="examples a step, instead of the model's own")
    parser.add_argument("--rounds", type=int, default=30, help="timings of each")
    parser.add_argument("--time-budget", type=float, default=120.0, help="of the tuner, in seconds")
    parser.add_argument("--tiny", action="store_true", help="small models, for a trial")
    parser.add_argument("--json", metavar="FILE", help="write everything here")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "ROW"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def make_model(name: str, tiny: bool) -> Any:
    """Builds and compiles a model under the global policy."""
    import keras

    from deepseek_hpf.bench.other_models import gpt

    if name == "gpt":
        if tiny:
            return gpt(blocks=1, width=16, heads=2, length=8, vocabulary=32)
        return gpt(blocks=24, width=1024, heads=16, length=1024, vocabulary=50257)
    if tiny:
        from deepseek_hpf.demo.resnet import create_resnet20

        model = create_resnet20((8, 8, 3), 10)
        loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        model = keras.applications.ResNet152(weights=None, classes=1000)
        loss = "sparse_categorical_crossentropy"
    model.compile(optimizer="adam", loss=loss)
    return model


def allow_tf32(allowed: bool) -> None:
    """Lets float32 products and convolutions use TF32 or not; nothing on a device without it."""
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if allowed else "float32")
    else:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


def measure(model_name: str, row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times one row in this process."""
    from deepseek_hpf.adapters.synthetic_batch import synthetic_batch
    from deepseek_hpf.bench.building import build_under
    from deepseek_hpf.bench.contenders import make_ready
    from deepseek_hpf.bench.measuring import machine_at_hand
    from deepseek_hpf.bench.records import BFLOAT16, FLOAT16, FLOAT32, OURS, BenchSettings
    from deepseek_hpf.memory.meter import meter

    allow_tf32(row != ROWS[0])
    names = dict(zip(ROWS, (FLOAT32, FLOAT32, BFLOAT16, FLOAT16, OURS), strict=True))
    size = options.batch or (TINY_BATCH if options.tiny else BATCH[model_name])
    settings = BenchSettings(batch_size=size, time_budget=options.time_budget)

    def make() -> Any:
        return make_model(model_name, options.tiny)

    batch = synthetic_batch(build_under("float32", make), size)
    memory = meter()
    ready = make_ready(names[row], make, batch, settings, lambda text: None)
    for _ in range(3):
        ready.step()
    seconds = []
    for _ in range(options.rounds):
        began = time.perf_counter()
        ready.step()
        seconds.append(time.perf_counter() - began)
    machine = machine_at_hand()
    return {
        "parameters": ready.model.count_params(),
        "batch_size": size,
        "seconds": seconds,
        "examples_per_second": size / statistics.median(seconds),
        "peak_memory": memory.peak(ready.model, batch, ready.step),
        "note": ready.note,
        "devices": machine.devices,
        "versions": dict(machine.versions),
    }


def measure_here(model_name: str, row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times one row in this process; a failure is a record that says why."""
    from deepseek_hpf.bench.measuring import one_line

    try:
        return measure(model_name, row, options)
    except Exception as error:  # noqa: BLE001 - a row of the table says so
        return {"failure": one_line(error)}


def measure_apart(backend: str, model: str, row: str, options: argparse.Namespace) -> Any:
    """Times one row in a process of its own; a death is a record that says why."""
    command = [sys.executable, __file__, "--one", model, row]
    command += ["--rounds", str(options.rounds), "--time-budget", str(options.time_budget)]
    command += ["--tiny"] if options.tiny else []
    command += ["--batch", str(options.batch)] if options.batch else []
    environment = {"KERAS_BACKEND": backend, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {"failure": lines[-1][:300] if lines else f"exit code {done.returncode}"}


def shown(row: str, found: dict[str, Any], base: dict[str, Any]) -> str:
    """Returns a line of the table."""
    if "failure" in found:
        return f"  {row:18} failed: {found['failure']}"
    speed, memory = found["examples_per_second"], found["peak_memory"]
    line = f"  {row:18} {speed:10.1f} examples/s"
    if "examples_per_second" in base:
        line += f"  {speed / base['examples_per_second']:5.2f} times"
    line += f"  {'memory not told' if memory is None else f'{memory / 2**30:.2f} GiB'}"
    if memory is not None and base.get("peak_memory"):
        line += f" ({memory / base['peak_memory'] - 1:+.0%})"
    return f"{line}  {found['note']}".rstrip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each back end and model."""
    options = parse(arguments)
    if options.one:
        print(json.dumps(measure_here(*options.one, options)))
        return
    rows = []
    for backend in options.backends:
        for model in options.models:
            print(f"{model} on {backend}", flush=True)
            base: dict[str, Any] = {}
            for row in options.rows:
                found = measure_apart(backend, model, row, options)
                base = found if row == ROWS[0] else base
                rows.append({"backend": backend, "model": model, "row": row, **found})
                print(shown(row, found, base), flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
