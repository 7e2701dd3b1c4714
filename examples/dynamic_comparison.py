"""Dynamic precision against float32 and static mixed precision: a ResNet-20 and a small GPT.

    KERAS_BACKEND=tensorflow python examples/dynamic_comparison.py --output results.jsonl

Each contender trains from the same weights on the same batches, seed by seed: Keras in float32,
`mixed_bfloat16` and `mixed_float16` with its own loss scaling, this package with a fixed plan, and
with each controller. "float32, weights 1e-6 off" is the yardstick: how far apart two runs end that
differ in nothing but the rounding of their first weights.

A line of JSON is written for each run. Runs that the file holds are not run again, so an
interrupted comparison goes on where it was; the table is printed of all that are there.
Add `--table` to print it only.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

import deepseek_hpf as hpf
from deepseek_hpf.bench.machine import this_machine
from deepseek_hpf.bench.other_models import gpt
from deepseek_hpf.demo.resnet import create_resnet20

PERTURBATION = 1e-6
# Runs of some hundred steps: looked at more often than the defaults are meant for.
OFTEN = {"every": 20, "sample_every": 10, "calm_steps": 200}


@dataclass(frozen=True)
class Contender:
    """A way to train.

    Args:
        name: As it is in the table.
        policy: A Keras policy.
        controller: Moves the layers; None for Keras on its own.
        perturbed: Whether to change the first weights by a rounding error.
    """

    name: str
    policy: str
    controller: str | None = None
    perturbed: bool = False


BASELINE = Contender("Keras float32", "float32")
CONTENDERS = (
    BASELINE,
    Contender(f"float32, weights {PERTURBATION:.0e} off", "float32", perturbed=True),
    *(Contender(f"Keras {name}", name) for name in ("mixed_bfloat16", "mixed_float16")),
    *(
        Contender(f"{controller}, {policy}", policy, controller)
        for policy in ("mixed_bfloat16", "mixed_float16")
        for controller in ("static", "threshold", "adaptive")
    ),
)


@dataclass(frozen=True)
class Task:
    """What is trained.

    Args:
        title: In words.
        epochs: How many.
        data: Batches to train with and to test with, by the seed.
        model: The model, not compiled.
        optimizer: Made for a number of steps.
    """

    title: str
    epochs: int
    data: Callable[[int], tuple[Any, Any]]
    model: Callable[[], keras.Model]
    optimizer: Callable[[int], keras.optimizers.Optimizer]


def cosine(rate: float, steps: int) -> Any:
    """A learning rate that falls to zero."""
    return keras.optimizers.schedules.CosineDecay(rate, steps)


TASKS = {
    "resnet": Task(
        "ResNet-20 on scikit-learn's digits, 8 px, 15 epochs of 45 steps, batch size 32",
        epochs=15,
        data=lambda seed: hpf.data.digits(batch_size=32, seed=seed),
        model=lambda: create_resnet20((8, 8, 1), 10),
        optimizer=lambda steps: keras.optimizers.SGD(
            # Small enough that the losses of two float32 runs, the yardstick, differ by some 0.1 %.
            cosine(0.01, steps),
            momentum=0.9,
            nesterov=True,
        ),
    ),
    "gpt": Task(
        "GPT, 2 blocks of 64, 64 characters of Python's source code, 5 epochs of 131 steps, "
        "batch size 32",
        epochs=5,
        data=lambda seed: hpf.data.python_source(batch_size=32, length=64, size=300_000, seed=seed),
        model=lambda: gpt(2, 64, 4, 64, len(hpf.data.PYTHON_CHARACTERS)),
        optimizer=lambda steps: keras.optimizers.Adam(cosine(3e-3, steps)),
    ),
}


class Clock(keras.callbacks.Callback):
    """Seconds of each epoch without its validation, by the wall and of the processor; retraces."""

    def __init__(self, traces: list[int]) -> None:
        super().__init__()
        self._traces, self._first_traces = traces, 0
        self.wall: list[float] = []
        self.processor: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts."""
        self._began = time.perf_counter(), time.process_time()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Takes note of what the first step took."""
        if batch == 1 and not self.wall:
            self._first_traces = self._traces[0]

    @property
    def retraces(self) -> int:
        """How often a step was traced after the first one."""
        return self._traces[0] - self._first_traces

    def on_test_begin(self, logs: Any = None) -> None:
        """Stops: the epoch's training is done."""
        self.wall.append(time.perf_counter() - self._began[0])
        self.processor.append(time.process_time() - self._began[1])


def run(task: Task, contender: Contender, seed: int, events: Path | None) -> dict[str, Any]:
    """Trains once, and returns what came of it."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    policy = hpf.MixedPrecisionPolicy(contender.policy, config=configuration(contender, seed))
    train, test = task.data(seed)
    keras.utils.set_random_seed(seed)
    with policy.scope():
        model = task.model()
        # As Keras's guide to mixed precision asks for; this package does it by itself.
        model.layers[-1].dtype_policy = keras.DTypePolicy("float32")
        model.compile(
            task.optimizer(task.epochs * len(train)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        )
    if contender.perturbed:
        perturb(model, seed)
    clock = Clock(count_traces(model))
    callbacks: list[keras.callbacks.Callback] = [clock]
    if contender.controller:
        callbacks = [hpf.callbacks.DynamicPrecision(policy, events=events), clock]
    history = model.fit(
        train, validation_data=test, epochs=task.epochs, verbose=0, callbacks=callbacks
    ).history
    return {
        **{name: history[name][-1] for name in ("loss", "val_loss", "val_accuracy")},
        "seconds": sum(clock.wall),
        # The epochs without compilation; a plan that comes late costs its own epoch.
        "step_seconds": statistics.median(clock.wall) / len(train),
        "step_processor_seconds": statistics.median(clock.processor) / len(train),
        "steps": task.epochs * len(train),
        "retraces": clock.retraces,
        "switches": history.get("precision_switches", [0])[-1],
        "skipped": skipped_steps(model, task.epochs * len(train)),
        "scale": scale(model),
        "history": {name: history[name] for name in ("loss", "val_loss", "val_accuracy")},
    }


def configuration(contender: Contender, seed: int) -> hpf.PrecisionConfig | None:
    """Returns the settings of the controller."""
    if contender.controller is None:
        return None
    dynamic: dict[str, Any] = {**OFTEN, "controller": contender.controller}
    if contender.controller != "threshold":
        del dynamic["calm_steps"]
    if contender.controller == "adaptive":
        dynamic["seed"] = seed
    return hpf.PrecisionConfig(policy=contender.policy, dynamic=dynamic)


def perturb(model: keras.Model, seed: int) -> None:
    """Changes each weight by about as much as rounding it in float32 could, and a little more."""
    random = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        noise = 1 + PERTURBATION * random.standard_normal(weight.shape)
        weight.assign(keras.ops.convert_to_numpy(weight) * noise)


def count_traces(model: keras.Model) -> list[int]:
    """Returns a number, in a list, that grows when the training step is traced."""
    count, train_step = [0], model.train_step

    def counted(*arguments: Any, **options: Any) -> Any:
        count[0] += 1
        return train_step(*arguments, **options)

    model.train_step = counted
    return count


def skipped_steps(model: keras.Model, steps: int) -> int:
    """Steps that changed no weight; Keras's loss scaling does not count them itself."""
    counter = getattr(model.optimizer, "skipped_steps", None)
    return steps - int(model.optimizer.iterations) if counter is None else int(counter)


def scale(model: keras.Model) -> float | None:
    """The loss scale, where there is one."""
    found = getattr(model.optimizer, "dynamic_scale", None)
    return None if found is None else float(found)


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the runs of a file; none where there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(task: str, runs: Sequence[dict[str, Any]]) -> str:
    """Returns means over the seeds as a Markdown table, differences paired by seed."""
    own = {(each["contender"], each["seed"]): each for each in runs if each["task"] == task}
    seeds = sorted({seed for _, seed in own})
    head = (
        *("contender", "loss", "to float32", "test loss", "to float32", "accuracy", "in points"),
        *("seconds", "ms a step", "processor ms", "switches", "retraces", "skipped"),
    )
    rows = [head, ("---", *("---:",) * (len(head) - 1))]
    for contender in CONTENDERS:
        here = [seed for seed in seeds if (contender.name, seed) in own]
        pairs = [
            (own[contender.name, seed], own[BASELINE.name, seed])
            for seed in here
            if (BASELINE.name, seed) in own
        ]
        if pairs:
            rows.append((contender.name, *cells(pairs)))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"{TASKS[task].title}; seeds {', '.join(map(str, seeds))}", "", *lines])


def cells(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Returns what a row says of runs and those of the baseline."""

    def mean(name: str, form: str, factor: float = 1.0) -> str:
        return form.format(factor * statistics.fmean(own[name] for own, _ in pairs))

    def difference(name: str) -> str:
        return spread([100 * (own[name] / base[name] - 1) for own, base in pairs]) + " %"

    points = [100 * (own["val_accuracy"] - base["val_accuracy"]) for own, base in pairs]
    return [
        mean("loss", "{:.4f}"),
        difference("loss"),
        mean("val_loss", "{:.4f}"),
        difference("val_loss"),
        mean("val_accuracy", "{:.2%}"),
        spread(points),
        mean("seconds", "{:.1f}"),
        mean("step_seconds", "{:.1f}", 1e3),
        mean("step_processor_seconds", "{:.1f}", 1e3),
        mean("switches", "{:.1f}"),
        mean("retraces", "{:.1f}"),
        mean("skipped", "{:.1f}"),
    ]


def spread(values: Sequence[float]) -> str:
    """The mean, the least and the largest."""
    return f"{statistics.fmean(values):+.2f} ({min(values):+.2f} to {max(values):+.2f})"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("dynamic_comparison.jsonl"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--epochs", type=int, help="in place of the task's own number")
    parser.add_argument(
        "--contenders", default="", metavar="WORD", help="only those with this word in their name"
    )
    parser.add_argument("--events", type=Path, metavar="DIR", help="folder for events of the runs")
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, and prints the tables."""
    given = parse(arguments)
    runs = read(given.output)
    known = {(each["task"], each["contender"], each["seed"]) for each in runs}
    wanted = [
        (name, contender, seed)
        for seed in range(given.seeds)
        for name in given.tasks
        for contender in CONTENDERS
        if given.contenders in contender.name and (name, contender.name, seed) not in known
    ]
    for name, contender, seed in [] if given.table else wanted:
        task = TASKS[name] if given.epochs is None else replace(TASKS[name], epochs=given.epochs)
        label = f"{name}-{contender.name}-{seed}".replace(", ", "-").replace(" ", "-")
        result = run(task, contender, seed, given.events and given.events / f"{label}.jsonl")
        key = {"task": name, "contender": contender.name, "seed": seed}
        machine = asdict(this_machine(keras.backend.backend()))
        runs.append({**key, **result, "machine": machine})
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(runs[-1]) + "\n")
        print(f"{label}: test loss {result['val_loss']:.4f}, {result['seconds']:.0f} s", flush=True)
    for name in given.tasks:
        print(f"\n{table(name, runs)}")


if __name__ == "__main__":
    main()
