"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

DataFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.npz",
        help="Arrays x and y (or x0, x1, …), and sample_weight if any. Without it, random "
        "values of the model's shapes.",
    ),
]
"""The batch to run a model on; None for one that is made up."""
