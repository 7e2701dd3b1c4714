"""Numbers that a configuration may hold: what float32 and int32 can represent."""

from typing import Annotated

from pydantic import AfterValidator, Field

from deepseek_hpf.config_wording import expects

FLOAT32_MAX = (2 - 2**-23) * 2.0**127
FLOAT32_TINY = 2.0**-126  # smallest normal; what is smaller may be flushed to zero
INT32_MAX = 2**31 - 1


def above_underflow(number: float) -> float:
    """Validates that float32 does not flush a number to zero."""
    if number < FLOAT32_TINY:
        raise expects(f"a number that float32 can hold, of at least {FLOAT32_TINY:g}")
    return number


# Scales and norms are float32 in the training step, so the numbers beside them have to fit.
Positive = Annotated[float, Field(gt=0, le=FLOAT32_MAX), AfterValidator(above_underflow)]
Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
Share = Annotated[float, Field(ge=0, le=1)]
