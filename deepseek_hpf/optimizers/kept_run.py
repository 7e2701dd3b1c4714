"""The state of a training under dynamic precision, kept in a `.keras` file with the optimizer.

It is an asset of the file: Keras reads assets for objects that ask for them, so a file with one
loads without this package (`compile=False`) like any other, and weights files hold none.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

FILE = "dynamic_precision.json"


class Run(Protocol):
    """What trains the optimizer's model."""

    def saved_state(self) -> Mapping[str, Any]:
        """Returns JSON values."""
        ...


class KeepsRun:
    """Part of an optimizer: what becomes of the run when the optimizer is saved and loaded."""

    @property
    def run(self) -> Run | None:
        """The run whose state is saved; None where there is none."""
        return self.__dict__.get("_run")

    @run.setter
    def run(self, run: Run | None) -> None:
        # Past the tracking of variables and layers: a run holds the whole model.
        self.__dict__["_run"] = run

    @property
    def loaded_run(self) -> Mapping[str, Any] | None:
        """The state that came with the file that the optimizer was loaded from."""
        return self.__dict__.get("_loaded_run")

    def save_assets(self, dir_path: str) -> None:
        """Writes the state of the run, if there is one.

        Args:
            dir_path: An existing folder.
        """
        state = self.loaded_run if self.run is None else self.run.saved_state()
        if state:
            with open(os.path.join(dir_path, FILE), "w", encoding="utf-8") as file:
                json.dump(state, file)

    def load_assets(self, dir_path: str | None) -> None:
        """Reads what `save_assets` wrote.

        Args:
            dir_path: The folder; None where the file has none.
        """
        path = os.path.join(dir_path or "", FILE)
        if dir_path and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.__dict__["_loaded_run"] = json.load(file)
