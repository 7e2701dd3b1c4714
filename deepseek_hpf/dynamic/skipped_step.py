"""A skipped step: at which loss scale it ran, whether to look into it, and what to say of it."""

from deepseek_hpf.dynamic.reading import Skips
from deepseek_hpf.optimizers.scale_rule import ScaleRules
from deepseek_hpf.scheduling.telemetry import Overflow

LOOKED_INTO = 4
SHOWN = 8  # samples that a sentence names


def scale_before(skips: Skips, rules: ScaleRules) -> float | None:
    """The loss scale at which the last, skipped step ran.

    Only the count of skips is read at each step. What the scale was follows from where the skip
    brought it:

        before hysteresis is reached, or on the floor already: it has not moved
        else: scale = max(before * backoff_factor, min_scale)

    Args:
        skips: What the optimizer says after the step.
        rules: How the scale moves.

    Returns:
        The scale; None without scaling.

    Example:
        >>> from deepseek_hpf.dynamic.reading import Skips
        >>> from deepseek_hpf.dynamic.skipped_step import scale_before
        >>> from deepseek_hpf.optimizers.scale_rule import ScaleRules
        >>> scale_before(Skips(7, in_a_row=1, in_a_row_on_floor=0, scale=512.0), ScaleRules())
        1024.0
    """
    if skips.scale is None or skips.in_a_row_on_floor or skips.in_a_row < rules.hysteresis:
        return skips.scale
    return min(skips.scale / rules.backoff_factor, rules.max_scale)


def is_looked_into(in_a_row: int) -> bool:
    """Whether to run a skipped step again, to see why.

    Of those in a row each of the first few, then ever fewer: hundreds will not tell more.

    Args:
        in_a_row: Which skip in a row it is, from 1.

    Returns:
        True for 1 to 4, 8, 16, 32 and so on.
    """
    return in_a_row <= LOOKED_INTO or in_a_row.bit_count() == 1


def told(overflow: Overflow) -> str:
    """What was found, in words.

    Args:
        overflow: The skipped step.

    Returns:
        A sentence without its full stop.
    """
    if overflow.cause == "data":
        return f"bad data, no layer is to blame; {_samples(overflow.samples)} not finite"
    phase = f" in the {overflow.phase} pass" if overflow.layer and overflow.phase else ""
    if overflow.cause == "activation":
        return f"{overflow.layer or 'the loss'} overflows{phase}, whatever the loss scale"
    if overflow.cause == "accumulation":
        return (
            f"the gradient of {overflow.layer} is finite, and overflows as it is summed in the "
            "weight's dtype, whatever the loss scale; a float32 weight or master has the range"
        )
    if overflow.cause == "loss_scale":
        at = "" if overflow.scale is None else f" at the loss scale {overflow.scale:g}"
        return f"{overflow.layer or 'the loss'} overflows{phase}{at}, not without"
    return "the cause is not known"


def _samples(samples: tuple[int, ...]) -> str:
    if not samples:
        return "the batch is"
    more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
    listed = ", ".join(map(str, samples[:SHOWN])) + more
    return f"sample {listed} of the batch is" if len(samples) == 1 else f"samples {listed} are"
