"""Runs the notebooks' sources and writes them, with what they show, as .ipynb files.

    python notebooks/execute.py                      # all of them
    python notebooks/execute.py memory tune_and_bench

The sources are the percent scripts beside this file; the .ipynb files are made of them and never
edited. The kernel is the running Python: none has to be registered.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "execute")
SECONDS_A_CELL = 600
# What C++ code writes while it starts says nothing of the notebook, and differs at each start.
_LOG_LINE = re.compile(
    r"^(WARNING: All log messages before absl|[IWEF]\d{4} |\d{4}-\d\d-\d\d ).*\n?", re.MULTILINE
)
_CELL = re.compile(r"\S*/ipykernel_\d+/\d+\.py:\d+: ")  # a warning names it, by a number at random
_COLOURS = 256  # enough for a plot, in half the bytes


def read(name: str) -> Any:
    """Returns a source as a notebook without outputs; the same cells have the same ids always."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{name.replace('_', '-')}-{number}"
    notebook.metadata = nbformat.from_dict(
        {
            "accelerator": "GPU",
            "colab": {"name": f"{name}.ipynb", "provenance": []},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def execute(notebook: Any, folder: Path, more: str = "") -> Any:
    """Runs a notebook in a process of its own.

    Args:
        notebook: Gets the outputs.
        folder: Where it runs and may leave files.
        more: Code that is run at the end, and leaves nothing in the notebook.

    Returns:
        The notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    manager = AsyncKernelManager()
    manager.kernel_spec.argv[0] = sys.executable
    manager.kernel_spec.argv[1:] = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    if more:
        notebook.cells.append(nbformat.v4.new_code_cell(more, id="more"))
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=SECONDS_A_CELL,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute(env=_environment(folder))
    finally:  # a kernel that the client was given is not its own to end
        run_sync(manager.shutdown_kernel)(now=True)
    if more:
        notebook.cells.pop()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _cleaned(output))]
    return notebook


def _cleaned(output: Any) -> Any:
    """Takes out what differs at each start, and makes pictures small; None for an empty output."""
    output.get("metadata", {}).clear()
    if output.output_type == "stream":
        output.text = _CELL.sub("", _LOG_LINE.sub("", output.text))
        return output if output.text.strip() else None
    if "image/png" in output.get("data", {}):
        output.data["image/png"] = _with_palette(output.data["image/png"])
        output.data.pop("text/plain", None)
    return output


def _with_palette(encoded: str) -> str:
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    # Small marks keep their colour: what counts is how far colours are apart, not how many have it.
    picture = picture.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def write(notebook: Any, name: str) -> None:
    """Writes the .ipynb file."""
    text = nbformat.writes(notebook, version=4)
    (FOLDER / f"{name}.ipynb").write_text(text + "\n", encoding="utf-8")


def _environment(folder: Path) -> dict[str, str]:
    """This package and its commands are found, nothing was tuned before, frameworks log nothing."""
    found = dict(os.environ)
    for name, first in (("PYTHONPATH", FOLDER.parent), ("PATH", Path(sys.executable).parent)):
        found[name] = os.pathsep.join([str(first), *filter(None, [found.get(name)])])
    found["DEEPSEEK_HPF_CACHE"] = str(folder / "cache")
    found["TF_CPP_MIN_LOG_LEVEL"] = "3"
    found.pop("TF_ENABLE_ONEDNN_OPTS", None)  # a notebook sets it where it needs to
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Executes the notebooks that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME")
    names = parser.parse_args(arguments).names or NAMES
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            write(execute(read(name), Path(folder)), name)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
