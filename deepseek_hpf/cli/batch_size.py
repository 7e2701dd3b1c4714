"""`hpf batch-size`: the largest batch that fits, or the fastest, with the precision."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deepseek_hpf.memory.batch_size_result import BatchSizeResult


def batch_size(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A function that returns a compiled Keras model, e.g. my_models:create_model.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Arrays x and y (or x0, x1, …), and sample_weight if any; rows are repeated. "
            "Without it, random values of the model's shapes.",
        ),
    ] = None,
    memory: Annotated[float, typer.Option(help="Share of the free memory; above 1, bytes.")] = 0.9,
    objective: Annotated[
        str, typer.Option(help="fits: the largest batch; throughput: the fastest.")
    ] = "fits",
    policies: Annotated[
        str | None, typer.Option(metavar="A,B", help="Policies to try, e.g. mixed_bfloat16.")
    ] = None,
    ceiling: Annotated[int | None, typer.Option(min=1, help="Most rows.")] = None,
    multiple_of: Annotated[int, typer.Option(min=1, help="What rows are a multiple of.")] = 8,
    time_budget: Annotated[
        float, typer.Option(min=1.0, help="Seconds after which no further trial begins.")
    ] = 600.0,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write all trials.")
    ] = None,
) -> None:
    """Train batches of growing size, each in a process that is ended at the memory's limit.

    The best is marked: the largest that fits, or the one with the most rows a second.

    Exit code: 0; 2 any error, among them a model of which not even one row fits.
    """
    import functools

    from rich.console import Console

    from deepseek_hpf.cli.loading import load_factory, load_model
    from deepseek_hpf.cli.npz_batch import batch_from
    from deepseek_hpf.errors import ConfigError
    from deepseek_hpf.lazy import import_with_backend

    if json is not None and (json.is_dir() or not json.absolute().parent.is_dir()):
        raise ConfigError(f"Expected a file in a folder that is there. Received: {json}.")
    load_factory(model)
    sample = None if data is None else batch_from(None, data, 256)
    names = None if policies is None else [each.strip() for each in policies.split(",") if each]
    finding = import_with_backend("deepseek_hpf.memory.finding")
    with Console(stderr=True).status("Starting") as status:
        found: BatchSizeResult = finding.find_batch_size(
            functools.partial(load_model, model),
            sample,
            memory=memory,
            objective=objective,
            policies=names,
            ceiling=ceiling,
            multiple_of=multiple_of,
            time_budget=time_budget,
            progress=status.update,
        )
    console = Console()
    console.print(found)
    if json is not None:
        found.to_json(json)
        console.print(f"Written: {json}", markup=False, highlight=False, soft_wrap=True)
