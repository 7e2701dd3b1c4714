"""Builds a model that `fit` would have its first step build, from what its batches look like."""

import importlib
import logging

import keras

from deepseek_hpf.adapters.running_fit import local_of_fit

_logger = logging.getLogger(__name__)

_LATE = (
    "%s is built by its first step, which runs under the policy and its rules; the controller "
    "begins with the second one. Build the model before `fit` to have it begin with the first."
)


class FirstBuild:
    """Builds a model, its metrics and its optimizer before the first step of a running `fit`.

    Only TensorFlow leaves that to the first step. The iterator of `fit` says which shapes and
    dtypes it will yield; no batch is drawn. Weights are drawn as they would have been. A model
    whose `call` does not run on symbolic inputs is left to its first step, and that is said once.

    Args:
        model: A compiled model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._has_failed = False

    def before_step(self) -> None:
        """To be called before a step while the model is not built."""
        if keras.backend.backend() != "tensorflow" or self._has_failed:
            return
        specs = getattr(local_of_fit(self._model, "iterator"), "element_spec", None)
        # What stands for an absent value, such as sample weights, has no shape.
        batch = keras.tree.map_structure(lambda s: s if hasattr(s, "shape") else None, specs)
        backend = importlib.import_module("deepseek_hpf.adapters.guard_tensorflow")
        if specs is None or not backend.build(self._model, batch):
            self._has_failed = True
            _logger.warning(_LATE, self._model.name)
