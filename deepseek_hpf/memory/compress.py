"""`compress_activations`: what a model's layers keep for the backward pass takes fewer bytes."""

from typing import Literal, get_args

import keras

from deepseek_hpf.adapters.activation_storage import StorageChooser, keeps_less
from deepseek_hpf.adapters.compiled import forget_compiled_functions
from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.adapters.walk import WalkedLayer, walk
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.memory.compression_report import CompressionReport, CompressionRow
from deepseek_hpf.storage.stored_call import MODULES, SMALLEST

Storage = Literal["int8", "int4", "sparse", "recompute"]

_PLACE = "_deepseek_hpf_compressed"


def compress_activations(
    model: keras.Model, storage: Storage = "int8", *, seed: int = 0, smallest: int = SMALLEST
) -> CompressionReport:
    """Has every layer that can keep what its backward pass needs in fewer bytes.

    Results of the forward pass do not change. `"int8"` and `"int4"` quantise by groups of 256
    values with stochastic rounding, so that weight gradients of linear layers stay unbiased;
    zeros, masks and integers, infinities and NaN come back exactly. `"sparse"` is exact
    throughout. `"recompute"` keeps what goes into a layer, and runs the layer again in the backward
    pass, with the same random numbers and without a second update of statistics; a layer that
    holds layers is run again as a whole. Parameters are never packed, and tensors below `smallest`
    bytes neither.

    It changes `call` on the layers' instances, nothing of which enters a saved file. A tensor
    that several layers keep is packed once. It needs JAX, PyTorch or TensorFlow.

    Args:
        model: A built model, under JAX, PyTorch or TensorFlow.
        storage: `"int8"`, `"int4"`, `"sparse"` or `"recompute"`.
        seed: Of the rounding. The same activations are always rounded in the same way.
        smallest: Bytes of the smallest tensor that is packed. Not negative.

    Returns:
        The report: one row for each layer, and `revert`.

    Raises:
        ConfigError: There is no such storage, `smallest` is negative, the model is not built or is
            compressed already, or the back end does not support it.
        ConfigTypeError: The model is not a Keras model.

    References:
        - [ActNN](https://arxiv.org/abs/2104.14129), [GACT](https://arxiv.org/abs/2206.11357)
    """
    _check(model, storage, smallest)
    chooser = StorageChooser(seed, smallest)
    log = UndoLog()
    rows = [_compress(walked, chooser, storage, log) for walked in walk(model)]
    log.set_on_instance(model, _PLACE, True)
    forget_compiled_functions(model)

    def revert() -> None:
        if len(log):
            log.undo()
            forget_compiled_functions(model)

    return CompressionReport(rows, revert)


def _compress(
    walked: WalkedLayer, chooser: StorageChooser, storage: str, log: UndoLog
) -> CompressionRow:
    layer = walked.layer
    reason = chooser.refusal(walked, storage)
    if reason is None and keeps_less(layer):
        reason = "a rule says how it keeps them"
    if reason is not None:
        return CompressionRow(walked.path, walked.class_name, None, reason)
    log.set_on_instance(layer, "call", chooser.hook(layer, storage).wrap(layer.call))
    return CompressionRow(walked.path, walked.class_name, storage)


def _check(model: keras.Model, storage: str, smallest: int) -> None:
    if not isinstance(model, keras.Model):
        raise ConfigTypeError(f"Expected a Keras model. Received: {model!r} of {type(model)}")
    if storage not in get_args(Storage):
        raise ConfigError(
            f"Expected one of {', '.join(get_args(Storage))}. Received: storage={storage!r}"
        )
    if not isinstance(smallest, int) or smallest < 0:
        raise ConfigError(f"Expected a number of bytes, 0 or more. Received: smallest={smallest!r}")
    if not model.built:
        raise ConfigError(
            f"Expected a built model. Received: {model.name!r}, which is not. Call it on a batch."
        )
    if vars(model).get(_PLACE):
        raise ConfigError(
            f"The activations of {model.name!r} are compressed already. Call `revert` of its "
            "report first."
        )
    if keras.backend.backend() not in MODULES:
        raise ConfigError(
            f"Activations are compressed under {', '.join(MODULES)}. Received: the back end "
            f"{keras.backend.backend()!r}"
        )
