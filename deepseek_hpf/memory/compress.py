"""`compress_activations`: what a model's layers keep for the backward pass takes fewer bytes."""

from typing import Any, Literal, get_args

import keras

from deepseek_hpf.adapters.activation_storage import COMPRESSED, StorageChooser, keeps_less
from deepseek_hpf.adapters.compiled import forget_compiled_functions
from deepseek_hpf.adapters.own_call import set_call
from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.adapters.walk import WalkedLayer, walk
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.memory.compression_report import CompressionReport, CompressionRow
from deepseek_hpf.memory.memory_goal import meet_goal
from deepseek_hpf.storage.stored_call import MODULES, SMALLEST

Storage = Literal["int8", "int4", "sparse", "recompute"]


def compress_activations(
    model: keras.Model,
    storage: Storage | None = None,
    *,
    memory_goal: float | None = None,
    batch: Any = None,
    seed: int = 0,
    smallest: int = SMALLEST,
) -> CompressionReport:
    """Has every layer that can keep what its backward pass needs in fewer bytes.

    Results of the forward pass do not change. `"int8"` and `"int4"` quantise by groups of 256
    values with stochastic rounding, so that weight gradients of linear layers stay unbiased;
    zeros, masks and integers, infinities and NaN come back exactly. `"sparse"` is exact
    throughout. `"recompute"` keeps what goes into a layer, and runs the layer again in the backward
    pass, with the same random numbers and without a second update of statistics; a layer that
    holds layers is run again as a whole. Parameters are never packed, and tensors below `smallest`
    bytes neither.

    With `memory_goal` in place of `storage` each layer gets one of its own. For every layer and
    each of `"sparse"`, `"int8"` and `"int4"` it is measured on a batch what the layer would keep,
    and how far the gradient would move with nothing else packed. Of all storages that stay within
    the goal those are taken whose squared errors add up to the least, exactly. That takes two steps
    of the model, not compiled, for each layer. The goal is a share of what all layers keep whose
    storage is in question; what is no layer, such as the loss, is not counted. Layers that a rule
    gives a storage keep it.

    It changes `call` on the layers' instances, nothing of which enters a saved file. A tensor
    that several layers keep is packed once. It needs JAX, PyTorch or TensorFlow.

    Args:
        model: A built model, under JAX, PyTorch or TensorFlow. Compiled, where there is a goal.
        storage: `"int8"`, `"int4"`, `"sparse"` or `"recompute"`; None is `"int8"` without a goal.
        memory_goal: Share of the bytes that may be kept, above 0 and at most 1; instead of
            `storage`.
        batch: `(x, y)` or `(x, y, sample_weight)` to measure on; goes with `memory_goal`. The
            model, its optimizer and its seeds are afterwards as they were.
        seed: Of the rounding. The same activations are always rounded in the same way.
        smallest: Bytes of the smallest tensor that is packed. Not negative.

    Returns:
        The report: one row for each layer, and `revert`. With a goal also bytes and errors.

    Raises:
        ConfigError: There is no such storage, `smallest` is negative, the model is not built or is
            compressed already, the back end does not support it, or the goal cannot be met: then
            the message says what can.
        ConfigTypeError: The model is not a Keras model.

    Example:
        >>> import keras, numpy as np
        >>> from deepseek_hpf.memory import compress_activations
        >>> layers = [keras.layers.Dense(64, activation="gelu") for _ in range(4)]
        >>> model = keras.Sequential([keras.Input((64,)), *layers])
        >>> model.compile("sgd", "mse")
        >>> batch = np.random.normal(size=(2, 256, 64))
        >>> report = compress_activations(model, memory_goal=0.6, batch=tuple(batch))
        >>> report.bytes_after <= 0.6 * report.bytes_before, report.error < 0.1
        (True, True)

    References:
        - [ActNN](https://arxiv.org/abs/2104.14129), [GACT](https://arxiv.org/abs/2206.11357)
    """
    _check(model, storage, smallest)
    _check_goal(model, storage, memory_goal, batch)
    chooser, log = StorageChooser(seed, smallest), UndoLog()

    def revert() -> None:
        if len(log):
            log.undo()
            forget_compiled_functions(model)

    if memory_goal is None:
        rows = [_compress(walked, chooser, storage or "int8", log) for walked in walk(model)]
        report = CompressionReport(rows, _revert=revert)
    else:
        met = meet_goal(model, memory_goal, batch, chooser=chooser, seed=seed, smallest=smallest)
        for layer, chosen in met.chosen:
            set_call(log, layer, chooser.hook(layer, chosen).wrap(layer.call))
        sizes = met.assignment.all_bytes, met.assignment.kept_bytes
        report = CompressionReport(met.rows, *sizes, _revert=revert)
    log.set_on_instance(model, COMPRESSED, True)
    forget_compiled_functions(model)
    return report


def _compress(
    walked: WalkedLayer, chooser: StorageChooser, storage: str, log: UndoLog
) -> CompressionRow:
    layer = walked.layer
    reason = chooser.refusal(walked, storage)
    if reason is None and keeps_less(layer):
        reason = "a rule says how it keeps them"
    if reason is not None:
        return CompressionRow(walked.path, walked.class_name, None, reason)
    set_call(log, layer, chooser.hook(layer, storage).wrap(layer.call))
    return CompressionRow(walked.path, walked.class_name, storage)


def _check(model: keras.Model, storage: str | None, smallest: int) -> None:
    if not isinstance(model, keras.Model):
        raise ConfigTypeError(f"Expected a Keras model. Received: {model!r} of {type(model)}")
    if storage is not None and storage not in get_args(Storage):
        raise ConfigError(
            f"Expected one of {', '.join(get_args(Storage))}. Received: storage={storage!r}"
        )
    if not isinstance(smallest, int) or smallest < 0:
        raise ConfigError(f"Expected a number of bytes, 0 or more. Received: smallest={smallest!r}")
    if not model.built:
        raise ConfigError(
            f"Expected a built model. Received: {model.name!r}, which is not. Call it on a batch."
        )
    if vars(model).get(COMPRESSED):
        raise ConfigError(
            f"The activations of {model.name!r} are compressed already. Call `revert` of its "
            "report first."
        )
    if keras.backend.backend() not in MODULES:
        raise ConfigError(
            f"Activations are compressed under {', '.join(MODULES)}. Received: the back end "
            f"{keras.backend.backend()!r}"
        )


def _check_goal(model: keras.Model, storage: str | None, goal: float | None, batch: Any) -> None:
    if goal is None:
        if batch is not None:
            raise ConfigError(
                "A batch is for measuring. Received: `batch` without `memory_goal`; add it, or "
                "leave the batch out."
            )
        return
    if storage is not None:
        raise ConfigError(
            "Expected one storage for all layers or a goal, which chooses one for each. Received: "
            f"storage={storage!r}, memory_goal={goal!r}"
        )
    if isinstance(goal, bool) or not isinstance(goal, int | float) or not 0 < goal <= 1:
        raise ConfigError(
            "Expected a share of the bytes that are kept now, above 0 and at most 1. Received: "
            f"memory_goal={goal!r}"
        )
    if batch is None:
        raise ConfigError(
            "A memory goal is met by what is measured on a batch. Received: no batch. Pass one, "
            "`batch=(x, y)`, of the size that is trained on."
        )
    if not model.compiled or model.optimizer is None:
        raise ConfigError(
            "Expected a compiled model, whose gradients can be measured. Received: "
            f"{model.name!r}, which is not. Call `model.compile(…)` first."
        )
