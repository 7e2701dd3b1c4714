"""What a training step keeps for its backward pass, its peak, and its time, plain and compressed.

    python examples/benchmarks/activation_memory.py --backend tensorflow --model resnet50 --json

Bytes kept are counted where the framework shows them: under TensorFlow in the graph of the step,
what operations that depend on no gradient make and others take (each buffer once, parameters left
out); under JAX in the residuals of `jax.vjp`; under PyTorch by hooks on what operations save. Peaks
are of fresh processes, and counted anew after the first steps: the most that was resident, and how
much more that is than before the first step. What compilers have taken and not given back, tens to
hundreds of megabytes with compression, is in it: only batches that are large beside it tell. Times
are of both models in one process, in turns; above 1, compression costs time.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

PLAIN = "plain"
STORAGES = ("int8", "int4", "sparse")
MB = 1e6


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--model", choices=("resnet50", "gpt"), default="resnet50")
    parser.add_argument("--storage", nargs="+", choices=STORAGES, default=["int8"])
    parser.add_argument("--policy", default="mixed_bfloat16")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, help="pixels on a side (96), or characters (128)")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of timings; 0 for none")
    parser.add_argument("--jit-compile", action="store_true", help="XLA or TorchDynamo")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each storage")
    parser.add_argument("--one", choices=(PLAIN, *STORAGES), help=argparse.SUPPRESS)
    parser.add_argument("--paired", choices=STORAGES, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def make_model(given: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Returns a compiled model and a made-up batch for it."""
    import keras
    import numpy as np

    from deepseek_hpf.bench.other_models import gpt

    keras.config.set_dtype_policy(given.policy)
    rng = np.random.default_rng(0)
    if given.model == "gpt":
        length = given.size or 128
        model = gpt(length=length)
        x, y = rng.integers(0, 256, (2, given.batch_size, length))
        loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        shape = (given.size or 96, given.size or 96, 3)
        model = keras.applications.ResNet50(weights=None, input_shape=shape, classes=10)
        x = rng.random((given.batch_size, *shape), dtype="float32")
        y = rng.integers(0, 10, given.batch_size)
        loss = "sparse_categorical_crossentropy"
    model.compile("sgd", loss, jit_compile=given.jit_compile or given.backend == "jax")
    return model, x, y


def compressed(model: Any, storage: str) -> list[str]:
    """Compresses a model, and returns what was left."""
    from deepseek_hpf.memory import compress_activations

    return [] if storage == PLAIN else list(compress_activations(model, storage).refused)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Counts bytes and finds the peak, in this process."""
    from deepseek_hpf.memory.process_memory import forget_peak, peak_memory, resident_memory

    model, x, y = make_model(given)
    refused = compressed(model, given.one)
    before = resident_memory(os.getpid())
    for _ in range(3):
        model.train_on_batch(x, y)
    forget_peak()
    for _ in range(2):
        model.train_on_batch(x, y)
    peak = peak_memory()
    more = None if peak is None or before is None else peak - before
    kept = COUNTS[given.backend](model, x, y)
    return {"kept": kept, "peak": peak, "peak_of_training": more, "refused": refused}


def time_pair(given: argparse.Namespace) -> dict[str, Any]:
    """Times a plain and a compressed model in turns, in this process."""
    from deepseek_hpf.timing import Spread, time_in_turns

    steps: dict[str, Callable[[], Any]] = {}
    for name in (PLAIN, given.paired):
        model, x, y = make_model(given)
        compressed(model, name)
        steps[name] = lambda model=model, x=x, y=y: model.train_on_batch(x, y)
    seconds = time_in_turns(steps, rounds=given.rounds, warm_up=2).seconds
    pairs = zip(seconds[given.paired], seconds[PLAIN], strict=True)
    ratio = Spread.of([ours / theirs for ours, theirs in pairs])
    return {
        "seconds_plain": Spread.of(seconds[PLAIN]).median,
        "seconds": Spread.of(seconds[given.paired]).median,
        "ratio": ratio.median,
        "ratio_quartiles": [ratio.low, ratio.high],
    }


def kept_tensorflow(model: Any, x: Any, y: Any) -> int:
    """Bytes of what depends on no gradient and is taken by what does."""
    tf = importlib.import_module("tensorflow")
    from deepseek_hpf.storage.tensor_origin_tensorflow import buffer_of, bytes_of, is_of_parameters

    def step(x: Any, y: Any, seed: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        return tape.gradient(loss, [v.value for v in model.trainable_variables], seed)

    batch = (tf.constant(x), tf.constant(y))
    traced = tf.function(step, autograph=False).get_concrete_function(*batch, tf.ones(()))
    wanted: set[Any] = set()
    stack = [t.op for t in traced.outputs]
    while stack:
        op = stack.pop()
        if op not in wanted:
            wanted.add(op)
            stack += [*(t.op for t in op.inputs), *op.control_inputs]
    late: set[Any] = set()
    for op in traced.graph.get_operations():
        after = any(each in late for each in (*(t.op for t in op.inputs), *op.control_inputs))
        if op in wanted and (op is traced.inputs[2].op or after):
            late.add(op)
    taken = [buffer_of(t) for op in late for t in op.inputs if t.op not in late]
    each_once = {id(t): t for t in taken if t.op.type not in ("Const", "Placeholder")}
    return sum(bytes_of(t) for t in each_once.values() if not is_of_parameters(t))


def kept_jax(model: Any, x: Any, y: Any) -> int:
    """Bytes of the residuals, without parameters."""
    jax = importlib.import_module("jax")
    state = [v.value for v in model.non_trainable_variables]

    def loss(weights: Any) -> Any:
        predicted, after = model.stateless_call(weights, state, x, training=True)
        return model.stateless_compute_loss(weights, after, [], x, y, predicted)[0]

    weights = [v.value for v in model.trainable_variables]
    residuals = jax.tree_util.tree_leaves(jax.vjp(loss, weights)[1])
    left = {id(value) for value in (*weights, *state)}
    return sum(each.nbytes for each in {id(r): r for r in residuals if id(r) not in left}.values())


def kept_torch(model: Any, x: Any, y: Any) -> int:
    """Bytes of what operations save, without parameters."""
    torch = importlib.import_module("torch")
    from deepseek_hpf.storage.saved_tensors_torch import SavedTensors

    saved = torch.autograd.graph.saved_tensors_hooks
    is_parameter = SavedTensors("sparse").is_parameter  # casts of parameters among them
    kept: dict[int, tuple[int, Any]] = {}

    class Counting(saved):
        """Counts what the hooks return, each once."""

        def __init__(self, pack: Any, unpack: Any):
            def counting(tensor: Any) -> Any:
                found = pack(tensor)
                if hasattr(found, "packed"):
                    kept[id(found.packed)] = (found.packed.kept_bytes, found)
                elif not is_parameter(tensor):
                    kept[found.data_ptr()] = (found.nbytes, found)
                return found

            super().__init__(counting, unpack)

    parameters = {v.value.data_ptr() for v in model.variables}
    torch.autograd.graph.saved_tensors_hooks = Counting
    try:
        with Counting(lambda tensor: tensor.detach(), lambda tensor: tensor):
            model.compute_loss(x, torch.as_tensor(y), model(x, training=True))
    finally:
        torch.autograd.graph.saved_tensors_hooks = saved
    return sum(size for place, (size, _) in kept.items() if place not in parameters)


COUNTS = {"tensorflow": kept_tensorflow, "jax": kept_jax, "torch": kept_torch}


def apart(options: Sequence[str], given: argparse.Namespace) -> dict[str, Any]:
    """Runs this script on one question, in a process of its own."""
    command = [sys.executable, __file__, *options, "--backend", given.backend]
    command += ["--model", given.model, "--policy", given.policy, "--rounds", str(given.rounds)]
    command += ["--batch-size", str(given.batch_size)]
    command += ["--size", str(given.size)] if given.size else []
    command += ["--jit-compile"] if given.jit_compile else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failure": lines[-1][:300] if lines else f"exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def shown(storage: str, row: dict[str, Any], plain: dict[str, Any]) -> str:
    """Returns a line of the table."""
    if "failure" in row:
        return f"{storage:8} failed: {row['failure']}"
    line = f"{storage:8}"
    for key in ("kept", "peak_of_training", "peak"):
        if row[key] is None or plain.get(key) is None:
            line += f"{'not told':>20}"
        else:
            line += f"{row[key] / MB:10.1f} MB ({row[key] / plain[key] - 1:+4.0%})"
    if "ratio" in row:
        low, high = row["ratio_quartiles"]
        line += f"   {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, or lines of JSON."""
    given = parse(arguments)
    os.environ["KERAS_BACKEND"] = given.backend
    if given.one or given.paired:
        print(json.dumps(measure(given) if given.one else time_pair(given)))
        return
    plain = apart(["--one", PLAIN], given)
    if not given.json:
        print(f"{given.model}, {given.policy}, {given.backend}, batches of {given.batch_size}")
        print(
            f"{'':8}{'kept for backward':>20}{'peak of training':>20}{'peak':>20}   time, to plain"
        )
        print(shown(PLAIN, plain, plain), flush=True)
    for storage in given.storage:
        row = apart(["--one", storage], given)
        if given.rounds and "failure" not in row:
            row |= apart(["--paired", storage], given)
        if given.json:
            asked = {k: v for k, v in vars(given).items() if k not in ("one", "paired", "json")}
            print(json.dumps({**asked, "storage": storage, "plain": plain, **row}), flush=True)
        else:
            print(shown(storage, row, plain), flush=True)


if __name__ == "__main__":
    main()
