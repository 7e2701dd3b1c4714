"""The first operation that made an infinity or a NaN."""

from deepseek_hpf.profiler.findings import NonFinite
from deepseek_hpf.profiler.recorder import Recorder
from deepseek_hpf.profiler.sightings import LOSS


def hunted(recorder: Recorder) -> NonFinite | None:
    """Names what first made a value that is not finite.

    Forward, that is the layer whose result is the first that is not finite. Backward, a gradient
    that arrives at a layer's output was made by whoever took that output.

    Args:
        recorder: What watched the step.

    Returns:
        The finding; None where everything was finite.
    """
    if recorder.first_nonfinite is None:
        return None
    phase, path, value = recorder.first_nonfinite
    kind = "output"
    if phase == "backward":
        kind = "output_gradient"
        path = _consumer(recorder, path)
    classes = {t.path: type(t.operation).__name__ for t in recorder.targets}
    return NonFinite(
        phase,
        path,
        classes.get(path, path),
        value,
        recorder.nonfinite_step,
        tuple(summary.row(place, kind) for place, summary in recorder.nonfinite_history),
    )


def _consumer(recorder: Recorder, path: str) -> str:
    if recorder.weight_gradient_was_first:
        return path
    leaves = [p.target for p in recorder.passages if p.source == path]
    parents = {t.parent for t in recorder.targets}
    takers = [target for target in leaves if target not in parents]
    return takers[0] if takers else LOSS
