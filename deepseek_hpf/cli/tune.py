"""`hpf tune`: measures how a model trains fastest, and writes the configuration."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek_hpf.cli.options import DataFile

if TYPE_CHECKING:
    from deepseek_hpf.tuning.result import TuningResult


def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A function that returns a compiled Keras model, e.g. my_models:create_model.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.json", help="Write the configuration that won."
        ),
    ] = None,
    data: DataFile = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 16,
    time_budget: Annotated[float, typer.Option(min=1.0, help="Seconds to tune for.")] = 60.0,
    error_budget: Annotated[
        float, typer.Option(help="Largest relative error of the loss, against float32.")
    ] = 0.1,
    cache: Annotated[
        bool, typer.Option(help="Take, and keep, the result for models of the same structure.")
    ] = True,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write all candidates' figures.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw time against error.")
    ] = None,
) -> None:
    """Measure training steps under one precision after the other; the fastest that is safe wins.

    Train with it by `MixedPrecisionPolicy.from_json("FILE.json")`. The policy "auto" finds the
    result by itself for a model of the same structure, where the cache is on.

    Exit code: 0; 2 any error. Ctrl-C gives the best so far.
    """
    from rich.console import Console

    from deepseek_hpf.cli.loading import load_model
    from deepseek_hpf.cli.npz_batch import batch_from
    from deepseek_hpf.lazy import import_with_backend

    _check_outputs(output, json, plot)
    made = load_model(model)
    batch = batch_from(made, data, batch_size)
    tuning = import_with_backend("deepseek_hpf.tuning.tune")
    found: TuningResult = tuning.tune(
        made, batch, time_budget=time_budget, error_budget=error_budget, cache=cache
    )
    console = Console()
    console.print(found)
    for path in _write(found, output, json, plot):
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)


def _check_outputs(output: Path | None, json: Path | None, plot: Path | None) -> None:
    """Raises before the work is done if its result could not be written."""
    from deepseek_hpf.errors import ConfigError
    from deepseek_hpf.extras import import_extra

    for path in (output, json, plot):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ConfigError(f"expected a file in a folder that is there. Received: {path}.")
    if plot is not None:
        import_extra("matplotlib", "report")


def _write(
    found: "TuningResult", output: Path | None, json: Path | None, plot: Path | None
) -> list[Path]:
    import json as encoding

    from deepseek_hpf.files import write_text_atomically

    if output is not None:
        found.to_json(output)
    if json is not None:
        text = encoding.dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_text_atomically(json, f"{text}\n")
    if plot is not None:
        found.plot(plot)
    return [path for path in (output, json, plot) if path is not None]
