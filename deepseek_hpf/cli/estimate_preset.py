"""The table of `hpf estimate --preset`: bytes on one of many devices, by formula."""

import dataclasses
import json

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepseek_hpf.memory.transformer import FORMS, Layout, Transformer, per_device, preset


def show_preset(name: str, layout: Layout, *, as_json: bool) -> None:
    """Prints the table, or JSON.

    Args:
        name: Of a preset.
        layout: How the training is spread.
        as_json: Whether to print JSON.

    Raises:
        ConfigError: There is no such preset.
    """
    model = preset(name)
    columns = {form.name: per_device(model, form, layout) for form in FORMS}
    if as_json:
        values = {
            "preset": name,
            "parameters": model.parameters,
            **dataclasses.asdict(model),
            **dataclasses.asdict(layout),
            "bytes_per_device": columns,
        }
        typer.echo(json.dumps(values, indent=2, allow_nan=False))
        return
    Console().print(_table(name, model, layout, columns))


def _table(
    name: str, model: Transformer, layout: Layout, columns: dict[str, dict[str, float]]
) -> Table:
    title = (
        f"{name}: {model.parameters / 1e9:,.1f} billion parameters on {layout.devices} devices, "
        f"{layout.tensor_parallel} to a layer, micro-batch {layout.micro_batch}"
    )
    table = Table(title=Text(title), caption=Text(_caption(model, layout)))
    table.add_column("GB on a device")
    for column in columns:
        table.add_column(Text(column), justify="right")
    terms = next(iter(columns.values()))
    for term in terms:
        cells = [f"{each[term] / 1e9:,.2f}" for each in columns.values()]
        table.add_row(Text(term), *cells, style="bold" if term == "total" else None)
    first = terms["total"]
    table.add_row("total over float32's", *(f"{e['total'] / first:.2f}" for e in columns.values()))
    return table


def _caption(model: Transformer, layout: Layout) -> str:
    s, h, a = model.length, model.width, model.heads
    scores = " + a s^2 b (2 v + 1)" if layout.attention else ", attention's scores recomputed"
    forms = "; ".join(
        f"{form.name}: {form.weight:g} + {form.master:g} + {form.gradient:g} + "
        f"{form.moments:.4g} bytes a parameter, v = {form.value:g}"
        for form in FORMS
    )
    return (
        f"{forms}. Parameters: {model.layers} (12 h^2 + 13 h) + ({model.vocabulary} + s) h + 2 h, "
        f"over the devices. Activations of {model.layers} layers, each s b h (16 v + 2){scores}, "
        f"over {layout.tensor_parallel}; s = {s}, h = {h}, a = {a}, b = {layout.micro_batch}. "
        "Embeddings' and logits' activations, and what a kernel needs inside, are not in it."
    )
