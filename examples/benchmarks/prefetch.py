"""What `data.prefetch` gains where reading a batch takes as long as computing a step.

    KERAS_BACKEND=jax python examples/benchmarks/prefetch.py --input wait

Three passes over the same batches, in turns within each round: reading alone, computing alone
(a batch in memory), and both, with `data.prefetch` and without. Overlapped, a step takes as long as
the longer of the two; one after the other, as their sum. `--input wait` reads as from a disk or a
network, which leaves the processor to the model; `--input decode` decodes and augments images in
NumPy, for which a CPU that also trains has no time to spare.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

import deepseek_hpf as hpf

SIDE = 32
BATCH = 64
POLICY = "mixed_bfloat16"


class SlowBatches(keras.utils.PyDataset):
    """Enlarged digits, each batch of which takes its time.

    Args:
        steps: Batches an epoch.
        seconds: How long reading a batch takes: waiting, or in so many passes of augmentation.
        decodes: Whether to compute in that time.
    """

    def __init__(self, steps: int, seconds: float, *, decodes: bool):
        super().__init__()
        self.steps, self.seconds, self.decodes = steps, seconds, decodes
        images, labels = hpf.data.digits("train", size=SIDE)
        self.images, self.labels = images[:BATCH], labels[:BATCH]

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.steps

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Reads a batch."""
        end = time.perf_counter() + self.seconds
        images = self.images
        while self.decodes and time.perf_counter() < end:
            images = np.clip(images[:, :, ::-1] * 1.01, 0.0, 1.0)  # flipped, a little brighter
        time.sleep(max(0.0, end - time.perf_counter()))
        return images, self.labels


def create_model() -> keras.Model:
    """A small convolutional network."""
    layers = keras.layers
    with hpf.MixedPrecisionPolicy(POLICY).scope():
        return keras.Sequential(
            [
                keras.Input((SIDE, SIDE, 1)),
                layers.Conv2D(32, 3, activation="relu"),
                layers.Conv2D(32, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(64, 3, activation="relu"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(10, dtype="float32"),
            ]
        )


def seconds_a_step(work: Callable[[], object], steps: int) -> float:
    """Times an epoch."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / steps


def passes(model: keras.Model, seconds: float, given: argparse.Namespace) -> dict[str, Any]:
    """Returns what is timed: name to a function that goes over an epoch."""

    def data(wait: float) -> SlowBatches:
        return SlowBatches(given.steps, wait, decodes=given.input == "decode")

    def fit(batches: Any) -> Callable[[], object]:
        return lambda: model.fit(batches, epochs=1, verbose=0, shuffle=False)

    def read(batches: Iterable[Any]) -> Callable[[], object]:
        return lambda: [None for _ in indexed(batches)]

    return {
        "input": read(data(seconds)),
        "compute": fit(data(0.0)),
        "one after the other": fit(data(seconds)),
        "prefetched": fit(hpf.data.prefetch(data(seconds), POLICY, depth=given.depth)),
    }


def indexed(batches: Any) -> Iterator[Any]:
    """The batches of a `PyDataset` in order."""
    return (batches[index] for index in range(len(batches)))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Times, prints, and returns medians in seconds and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", choices=("wait", "decode"), default="wait")
    parser.add_argument("--share", type=float, default=1.0, help="time of input over computing")
    parser.add_argument("--depth", type=int, default=2, help="batches that are ready at most")
    parser.add_argument("--steps", type=int, default=30, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    keras.utils.set_random_seed(0)
    model = create_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    warm_up = passes(model, 0.0, given)
    for work in (*warm_up.values(), warm_up["compute"]):
        work()
    alone = seconds_a_step(warm_up["compute"], given.steps)
    works = passes(model, given.share * alone, given)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(given.rounds):
        for name, work in works.items():
            times[name].append(seconds_a_step(work, given.steps))
    result = {f"{name}, s a step": statistics.median(each) for name, each in times.items()}
    rounds = list(zip(*times.values(), strict=True))
    result["prefetched over max(input, compute)"] = statistics.median(
        ahead / max(read, step) for read, step, _, ahead in rounds
    )
    result["prefetched over one after the other"] = statistics.median(
        ahead / plain for _, _, plain, ahead in rounds
    )
    about = {"backend": keras.backend.backend(), "input": given.input, "depth": given.depth}
    print(json.dumps({**about, **{name: round(value, 5) for name, value in result.items()}}))
    return result


if __name__ == "__main__":
    main()
