"""The first operation that made an infinity or a NaN."""

from typing import Any

import keras
import numpy as np

from deepseek_hpf.profiler.findings import NonFinite
from deepseek_hpf.profiler.recorded_step import RecordedStep, own_variables
from deepseek_hpf.profiler.recorder import Recorder
from deepseek_hpf.profiler.sightings import LOSS, Arrival
from deepseek_hpf.profiler.summing import is_float, summarize, tapping

UNSEEN = "no operation was seen to make it: what is compiled cannot be looked into"


def hunted(recorder: Recorder, step: RecordedStep, factor: float = 1.0) -> NonFinite | None:
    """Names what first made a value that is not finite.

    Forward, that is in the layer whose result is the first that is not finite. Backward, a gradient
    that arrives at a layer's output was made by whoever took that output. The step is run again,
    to find the operation there that first makes such a value out of finite ones.

    Args:
        recorder: What watched the step.
        step: The step.
        factor: What its loss was multiplied with.

    Returns:
        The finding; None where everything was finite.
    """
    arrival = recorder.sightings.first_nonfinite
    if arrival is None:
        return None
    backward = arrival.phase == "backward"
    path = _consumer(recorder, arrival) if backward else arrival.path
    maker = _FirstMaker(None if backward else path)
    step.replay(recorder, maker.seen, factor, backward=backward)
    operations = {target.path: target.operation for target in recorder.targets}
    layer = operations.get(path)
    kind = "output_gradient" if backward else "output"
    return NonFinite(
        arrival.phase,
        path,
        maker.name or (type(layer).__name__ if layer is not None else path),
        arrival.value,
        arrival.step,
        tuple(summary.row(place, kind) for place, summary in arrival.history),
        "" if maker.name else _reason(step, layer),
    )


class _FirstMaker:
    """Waits for an operation that makes a value that is not finite out of finite ones.

    A constant infinity is no such operation: masks are made of them. The first NaN is one where
    nothing but constants brought the infinities.
    """

    def __init__(self, path: str | None):
        self._path = path
        self._first = ""
        self._first_nan = ""

    @property
    def name(self) -> str:
        """The operation; empty as long as none was seen."""
        return self._first or self._first_nan

    def seen(self, path: str, name: str, inputs: list[Any], outputs: list[Any]) -> None:
        given = [x for x in inputs if is_float(x)]
        if self._first or not given or self._path not in (None, path):
            return
        worst = _worst(outputs)
        if worst and not _worst(given):
            self._first = name
        elif worst == "nan" and not self._first_nan and _worst(given) == "inf":
            self._first_nan = name


def _worst(tensors: list[Any]) -> str:
    """`"nan"` or `"inf"` if there is any; tensors of a trace are not looked into."""
    found = ""
    for tensor in tensors:
        if is_float(tensor) and (_is_numpy(tensor) or tapping().is_concrete(tensor)):
            if bool(keras.ops.any(keras.ops.isnan(tensor))):
                return "nan"
            if bool(keras.ops.any(keras.ops.isinf(tensor))):
                found = "inf"
    return found


def _is_numpy(tensor: Any) -> bool:
    return isinstance(tensor, np.ndarray | np.generic)


def _reason(step: RecordedStep, layer: Any) -> str:
    if _worst(step.batch_tensors()):
        return "the batch itself is not finite"
    variables = own_variables(layer) if isinstance(layer, keras.Layer) else []
    for variable in variables:
        if summarize(variable.value).nonfinite is not None:
            return f"its weight {variable.name} is not finite"
    return UNSEEN


def _consumer(recorder: Recorder, arrival: Arrival) -> str:
    if arrival.is_of_weight:
        return arrival.path
    leaves = [p.target for p in recorder.sightings.passages if p.source == arrival.path]
    parents = {t.parent for t in recorder.targets}
    takers = [target for target in leaves if target not in parents]
    return takers[0] if takers else LOSS
