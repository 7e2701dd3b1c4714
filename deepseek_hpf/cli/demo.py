"""`hpf demo`: a ResNet on real images, in float32 and under a policy, side by side."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    dataset: Annotated[
        str, typer.Option(help="digits (embedded), or a TFDS image classification set.")
    ] = "digits",
    epochs: Annotated[int, typer.Option(help="Epochs of each of the two runs.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    policy: Annotated[
        str, typer.Option(help="auto, mixed_bfloat16, mixed_float16, bfloat16 or float32.")
    ] = "auto",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A configuration, a JSON file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and of the data order.")] = 0,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the picture, the page and the figures.")
    ] = Path("demo"),
) -> None:
    """Train a ResNet-20 on real images in float32 and under a policy, and compare the two."""
    from rich.console import Console

    from deepseek_hpf.demo.front import run_demo
    from deepseek_hpf.demo.records import RunSettings

    settings = RunSettings(
        dataset=dataset,
        epochs=epochs,
        batch_size=batch_size,
        policy=policy,
        config_path=None if config is None else str(config),
        seed=seed,
    )
    run_demo(settings, output, Console())
