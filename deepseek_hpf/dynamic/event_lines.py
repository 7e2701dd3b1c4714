"""The lines of an event file, one class a kind. Keys of later versions are passed over."""

import json
import math
from collections.abc import Mapping
from numbers import Integral
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deepseek_hpf.config_wording import describe, shown
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.events import Kind

_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def _number(value: object) -> object:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number)]
Count = Annotated[int, Field(ge=0)]
Paths = Annotated[tuple[str, ...], Field(strict=False)]
Samples = Annotated[tuple[Count, ...], Field(strict=False)]


class EventLine(BaseModel):
    """What all lines have."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    kind: str
    step: Count
    """Number of a step, from 0."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Validates a line.

        Args:
            values: What the line's JSON says.

        Returns:
            The line.

        Raises:
            ConfigError: A key is missing or its value is not valid.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(describe(error, cls)) from None


class StartLine(EventLine):
    """A run begins or goes on; `step` is the next one."""

    kind: Literal["start"]
    model: str
    policy: str
    controller: str
    blocks: dict[str, Paths]
    precision: dict[str, str]
    resumed: bool = False


class WindowLine(EventLine):
    """A read-out; `step` is the number of steps trained so far."""

    kind: Literal["window"]
    steps: Count = 0
    epoch: Count = 0
    loss: Number | None = None
    scale: Number | None = None
    gradient_norm: Number | None = None
    skipped: Count = 0
    step_seconds: Number | None = None


class DecisionLine(EventLine):
    """A decision of the controller; `step` is the first one that it holds for."""

    kind: Kind
    reason: str
    precision: dict[str, str]
    plan: str = ""
    block: str | None = None
    scale: Number | None = None


class OverflowLine(EventLine):
    """A skipped step."""

    kind: Literal["overflow"]
    cause: str
    layer: str | None = None
    phase: str | None = None
    samples: Samples = ()
    scale: Number | None = None
    reason: str = ""


class ScaleLine(EventLine):
    """A change of the loss scale; `step` is the first one that it holds for."""

    kind: Literal["scale"]
    scale: Number
    reason: str = ""


KINDS: dict[str, type[EventLine]] = {
    "start": StartLine,
    "window": WindowLine,
    "overflow": OverflowLine,
    "scale": ScaleLine,
    **dict.fromkeys(("promote", "demote", "phase", "explore", "settle"), DecisionLine),
}


def parse_line(text: bytes) -> EventLine | str:
    """Parses one line of an event file.

    Args:
        text: The line.

    Returns:
        The line, or its kind where this version does not know that.

    Raises:
        ConfigError: It is not an event.

    Example:
        >>> parse_line(b'{"kind": "scale", "step": 7, "scale": 2}').scale
        2.0
        >>> parse_line(b'{"kind": "of tomorrow"}')
        'of tomorrow'
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        found = shown(text.decode("utf-8", "replace").strip())
        raise ConfigError(f"expected an event, as a JSON object. Received: {found}.") from None
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        expected = 'expected an event, a JSON object with a "kind"'
        raise ConfigError(f"{expected}. Received: {shown(text.decode().strip())}.")
    kind: str = values["kind"]
    return KINDS[kind].of(values) if kind in KINDS else kind


def plain(value: Any) -> Any:
    """Turns what a line holds into JSON's values.

    Args:
        value: Scalars, those of NumPy as well, in mappings and lists.

    Returns:
        The same without what is None; numbers that are not finite are strings.

    Example:
        >>> plain({"loss": float("nan"), "samples": (1, 2), "layer": None})
        {'loss': 'NaN', 'samples': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else shown(number)
