"""`hpf estimate`: what a training step needs, in float32 and under a policy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deepseek_hpf.memory.memory_estimate import MemoryEstimate


def estimate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:FUNCTION]",
            help="A function that returns a compiled Keras model.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 16,
    policy: Annotated[
        str, typer.Option(metavar="NAME|FILE.json", help="What to compare float32 with.")
    ] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Arrays x and y, of which shapes and dtypes count. Without it, what the model "
            "takes.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="In place of a function: gpt2-xl, gpt3-13b or gpt3-175b."
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(min=1, help="With --preset: devices that share the state.")
    ] = 336,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="With --preset: devices that share a layer.")
    ] = 8,
    micro_batch: Annotated[int, typer.Option(min=1, help="With --preset: rows of a step.")] = 2,
    recompute_attention: Annotated[
        bool, typer.Option(help="With --preset: do not keep the attention's scores.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for other programs.")
    ] = False,
) -> None:
    """Show what a training step needs, term by term, in float32 and under a policy.

    Nothing is trained. Under JAX the figures are the compiler's, under PyTorch and TensorFlow of
    the traced step. The environment variable KERAS_BACKEND chooses the back end.

    With --preset it is arithmetic: bytes on one of many devices, by the formulas of Korthikanti et
    al. 2022 for what is kept for the backward pass. No model is built.
    """
    from deepseek_hpf.errors import ConfigError

    if (model is None) == (preset is None):
        given = "both" if model is not None else "neither"
        raise ConfigError(f"Expected MODULE:FUNCTION or --preset. Received: {given}.")
    if preset is not None:
        from deepseek_hpf.cli.estimate_preset import show_preset
        from deepseek_hpf.memory.transformer import Layout

        layout = Layout(
            devices=devices,
            tensor_parallel=tensor_parallel,
            micro_batch=micro_batch,
            attention=not recompute_attention,
        )
        show_preset(preset, layout, as_json=as_json)
    elif model is not None:
        _show(_estimates(model, batch_size, policy, data), as_json)


def _estimates(
    target: str, batch_size: int, policy: str, data: Path | None
) -> "dict[str, MemoryEstimate]":
    from deepseek_hpf.cli.npz_batch import batch_from
    from deepseek_hpf.lazy import import_with_backend

    policies = import_with_backend("deepseek_hpf.policy")
    estimating = import_with_backend("deepseek_hpf.memory.estimating")
    make = policies.MixedPrecisionPolicy
    chosen = make.from_json(policy) if policy.endswith(".json") else make(policy)
    sample = None if data is None else batch_from(None, data, 1)
    plain = _made(target, make("float32"), apply=False)
    ours = _made(target, chosen, apply=True)
    name = f"deepseek_hpf, {chosen.name}"
    return {
        "float32": estimating.estimate(plain, batch_size, sample=sample),
        name: estimating.estimate(ours, batch_size, sample=sample),
    }


def _made(target: str, policy: Any, *, apply: bool) -> Any:
    from deepseek_hpf.adapters.apply import apply_policy
    from deepseek_hpf.cli.loading import load_model

    with policy.scope():
        model = load_model(target)
    if apply:
        apply_policy(model, policy)
    return model


def _show(estimates: "dict[str, MemoryEstimate]", as_json: bool) -> None:
    import json

    from rich.console import Console

    from deepseek_hpf.memory.memory_estimate import comparison

    if as_json:
        values = {name: each.to_dict() for name, each in estimates.items()}
        typer.echo(json.dumps(values, indent=2, allow_nan=False))
    else:
        Console().print(comparison(estimates))
