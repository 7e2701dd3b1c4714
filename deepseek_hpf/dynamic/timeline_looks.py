"""Colours and shapes of a timeline, after Okabe and Ito.

Nothing is told by its colour alone: rows of marks have a name and a shape of their own, and the
precision between base and float32 is striped in the colours of both, which differ in brightness.

References:
    M. Okabe, K. Ito: Color Universal Design, 2008, https://jfly.uni-koeln.de/color/
"""

from collections.abc import Iterable
from typing import NamedTuple


class Colour(NamedTuple):
    """A colour on a light and on a dark ground."""

    light: str
    dark: str


class Shape(NamedTuple):
    """How the marks of a row look.

    Args:
        colour: Their colour.
        marker: The shape, by matplotlib's name.
        path: The same as SVG path data, 12 by 12.
    """

    colour: Colour
    marker: str
    path: str


BACKGROUND = Colour("#ffffff", "#14181d")
TEXT = Colour("#1b1f24", "#e6edf3")
QUIET = Colour("#57606a", "#9aa4af")
GRID = Colour("#d0d7de", "#3a424c")

SWITCH = Colour("#0072b2", "#56b4e9")
SKIP = Colour("#b3261e", "#ff8a80")

SHAPES = {
    "promoted": Shape(SWITCH, "^", "M6 1 11.5 11H.5z"),
    "demoted": Shape(Colour("#a85a00", "#e69f00"), "v", "M6 11 .5 1h11z"),
    "new plan": Shape(Colour("#a8457f", "#e08fc0"), "D", "M6 0 12 6 6 12 0 6z"),
    "skipped": Shape(SKIP, "X", "M3 0 6 3 9 0l3 3-3 3 3 3-3 3-3-3-3 3-3-3 3-3-3-3z"),
    "loss scale": Shape(Colour("#00795a", "#2fc59b"), "s", "M1 1h10v10H1z"),
    "resumed": Shape(QUIET, ">", "M1 .5v11L11 6z"),
}

_LEVELS = {"base": Colour("#eab25a", "#8a5a00"), "float32": Colour("#005a8f", "#9ad4ff")}
_OTHERS = (Colour("#a8457f", "#e08fc0"), Colour("#00795a", "#2fc59b"), Colour("#57606a", "#9aa4af"))


def level_colours(levels: Iterable[str]) -> dict[str, tuple[Colour, Colour]]:
    """Gives each level the colour of its ground and that of its stripes.

    Args:
        levels: As in the file.

    Returns:
        Both; they are the same where there are no stripes.

    Example:
        >>> ground, stripes = level_colours(["critical"])["critical"]
        >>> ground == level_colours(["base"])["base"][0], ground == stripes
        (True, False)
    """
    found: dict[str, tuple[Colour, Colour]] = {}
    others = 0
    for level in levels:
        if level == "critical":
            found[level] = (_LEVELS["base"], _LEVELS["float32"])
        elif level in _LEVELS:
            found[level] = (_LEVELS[level],) * 2
        else:
            found[level] = (_OTHERS[others % len(_OTHERS)],) * 2
            others += 1
    return found
