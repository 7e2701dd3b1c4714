"""Trains a ResNet-20 on real images twice, in float32 and under a precision policy.

    python examples/train_resnet.py --epochs 3 --policy mixed_bfloat16

It prints a table and writes a picture, a page and the figures. The training itself, by
`model.fit`, is in `deepseek_hpf/demo/training.py`; with a model of your own it comes to this:

    policy = hpf.MixedPrecisionPolicy()
    with policy.scope():
        model = create_model()
        model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.fit(train, callbacks=[hpf.callbacks.PrecisionOverrides(policy)])
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from deepseek_hpf.demo.front import run_demo
from deepseek_hpf.demo.records import Comparison, RunSettings


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits", help="digits, or a TFDS image set")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--policy", default="auto", help="auto, or a Keras policy name")
    parser.add_argument("--config", metavar="FILE", help="a JSON configuration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> Comparison:
    """Runs the example."""
    given = parse(arguments)
    settings = RunSettings(
        dataset=given.dataset,
        epochs=given.epochs,
        batch_size=given.batch_size,
        policy=given.policy,
        config_path=given.config,
        seed=given.seed,
    )
    return run_demo(settings, given.output, Console())


if __name__ == "__main__":
    main()
