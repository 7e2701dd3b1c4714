"""`hpf schema`: the JSON Schema of the configuration file."""

from pathlib import Path
from typing import Annotated

import typer


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it to this file instead.")
    ] = None,
) -> None:
    """Print the JSON Schema (draft 2020-12) of the configuration file.

    Editors complete and check a file that names it: {"$schema": "precision.schema.json", …}.
    """
    from deepseek_hpf.config_schema import schema_text

    text = schema_text()
    if output is None:
        typer.echo(text, nl=False)
        return
    from deepseek_hpf.files import write_text_atomically

    write_text_atomically(output, text)
