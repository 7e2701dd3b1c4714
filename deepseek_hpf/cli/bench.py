"""`hpf bench`: training steps in float32, under the peers' mixed precision and ours."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek_hpf.cli.options import DataFile

if TYPE_CHECKING:
    from deepseek_hpf.bench.job import Job
    from deepseek_hpf.bench.records import BenchSettings


def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:FUNCTION]",
            help="A function that returns a compiled Keras model.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[bool, typer.Option("--suite", help="Measure the built-in suite.")] = False,
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="With --suite: these of its models only.")
    ] = None,
    data: DataFile = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Most timings of each contender.")] = 20,
    time_budget: Annotated[
        float, typer.Option(min=1.0, help="Seconds that the tuner has for a model.")
    ] = 120.0,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Keep each model's result here at once; what is here already, measured in the "
            "same way, is not measured again.",
        ),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="FILE.jsonl",
            help="Measure nothing: show what --results has kept. May be given several times.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write all figures.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write the page, e.g. BENCHMARKS.md.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw a bar chart.")] = None,
) -> None:
    """Time training steps of a model, or of ten, in float32, by the peers and by deepseek_hpf.

    The contenders are Keras's float32, mixed_bfloat16 and mixed_float16, TensorFlow's graph rewrite
    (with that back end), and deepseek_hpf: the configuration that `tune` finds. Each trains a model
    of its own, in turns. The environment variable KERAS_BACKEND chooses the back end.

    A model that the suite does not hold: `hpf bench deepseek_hpf.bench.image_models:xception`, or
    one of your own: `hpf bench my_models:create_model --data batch.npz --batch-size 64`.

    Exit code: 0; 2 any error. A contender that fails is a line of the table.
    """
    from rich.console import Console

    from deepseek_hpf.bench.front import Outputs, run_bench, show
    from deepseek_hpf.bench.records import BenchSettings
    from deepseek_hpf.bench.results_file import read_results
    from deepseek_hpf.errors import ConfigError

    outputs = Outputs(json=json, markdown=markdown, plot=plot, results=results)
    _check(model, suite, models, data, merge, results)
    if merge:
        outputs.check()
        found = [result for path in merge for result in read_results(path)]
        if not found:
            raise ConfigError(f"Expected results. Received: {merge[0]}, which holds no result.")
        show(found, outputs, Console(), _merging(merge, markdown))
        return
    settings = BenchSettings(batch_size=batch_size, rounds=rounds, time_budget=time_budget)
    command = _command(model, models, data, settings)
    run_bench(_jobs(model, models, data, settings, command), outputs, Console())


def _check(
    model: str | None,
    suite: bool,
    models: str | None,
    data: Path | None,
    merge: list[Path] | None,
    results: Path | None,
) -> None:
    """Raises `ConfigError` for options that do not go together."""
    from deepseek_hpf.errors import ConfigError

    given = [name for name, value in (("MODULE:FUNCTION", model), ("--suite", suite)) if value]
    given += ["--from"] if merge else []
    if len(given) != 1:
        raise ConfigError(
            "Expected one of MODULE:FUNCTION, --suite and --from. "
            f"Received: {' and '.join(given) or 'none'}."
        )
    for name, value in (("--models", models), ("--data", data), ("--results", results)):
        needs = {"--models": ["--suite"], "--data": ["MODULE:FUNCTION"]}
        allowed = needs.get(name, ["MODULE:FUNCTION", "--suite"])
        if value is not None and given[0] not in allowed:
            raise ConfigError(
                f"Expected {name} with {' or '.join(allowed)}. Received it with {given[0]}."
            )


def _jobs(
    model: str | None,
    models: str | None,
    data: Path | None,
    settings: "BenchSettings",
    command: str,
) -> "list[Job]":
    from deepseek_hpf.bench.job import Job
    from deepseek_hpf.bench.suite import SuiteModel, chosen
    from deepseek_hpf.cli.loading import load_model
    from deepseek_hpf.cli.npz_batch import batch_from

    wanted = [SuiteModel(model, model)] if model is not None else list(chosen(models).values())
    make_batch = functools.partial(batch_from, path=data, rows=settings.batch_size)
    return [
        Job(
            model=each.title,
            target=each.target,
            make_model=functools.partial(load_model, each.target),
            make_batch=make_batch,
            settings=settings,
            command=command,
        )
        for each in wanted
    ]


def _command(
    model: str | None, models: str | None, data: Path | None, settings: "BenchSettings"
) -> str:
    """The command that measures the same: what is not the default."""
    import shlex

    from deepseek_hpf.bench.records import BenchSettings

    words = ["hpf", "bench", *([model] if model is not None else ["--suite"])]
    words += ["--models", models] if models is not None else []
    words += ["--data", data.name] if data is not None else []
    for option in ("batch_size", "rounds", "time_budget"):
        value = getattr(settings, option)
        if value != getattr(BenchSettings(), option):
            words += [f"--{option.replace('_', '-')}", f"{value:g}"]
    return shlex.join(words)


def _merging(files: list[Path], markdown: Path | None) -> str:
    import shlex

    # The folders above are this machine's; a relative path holds from the same place anywhere.
    given = (path.name if path.is_absolute() else path.as_posix() for path in files)
    words = ["hpf", "bench", *(word for path in given for word in ("--from", path))]
    return shlex.join(words + (["--markdown", markdown.name] if markdown is not None else []))
