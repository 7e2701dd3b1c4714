"""The tables on the terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from deepseek_hpf.bench.records import ModelResult
from deepseek_hpf.bench.table import MODEL_COLUMNS, model_rows, suite_columns, suite_rows


def model_table(result: ModelResult) -> Table:
    """Returns the table of one model: a line for each contender."""
    parameters = "" if result.parameters is None else f", {result.parameters:,} parameters"
    title = f"{result.model}{parameters}, inputs {result.input_shape}"
    return _table(title, MODEL_COLUMNS, model_rows(result))


def suite_table(results: Sequence[ModelResult]) -> Table:
    """Returns the table of several models of one group: a line for each model."""
    machine = results[0].machine
    title = f"Ratios to float32 on {' and '.join(machine.devices)}, {machine.backend}"
    return _table(title, suite_columns(results), suite_rows(results, quartiles=False))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(title))
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
