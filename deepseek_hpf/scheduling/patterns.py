"""Shell-style patterns over layer paths, matched in time linear in the path.

Files come from anywhere, so a pattern must not be able to hang the program: it is never translated
to a regular expression. All ways of matching are followed at once instead, as the bits of one
integer.
"""

from functools import lru_cache
from typing import NamedTuple


class _Range(NamedTuple):
    """Characters of a bracket, both ends included."""

    low: str
    high: str


class _Bracket(NamedTuple):
    """`[abc]` or `[!a-z]`: one character."""

    ranges: tuple[_Range, ...]
    negated: bool

    def accepts(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) != self.negated


class PathPattern:
    """A case-sensitive shell-style pattern over the whole of a path.

    `*` stands for any characters, `/` among them; `?` for one; `[abc]`, `[a-z]` and `[!abc]` for
    one of, or none of, those listed. A `[` that nothing closes is an ordinary character. `[*]` is a
    literal star. This is the language of `fnmatch.fnmatchcase`.

    The pattern is a chain of one-character tokens; bit `i` of the state says that the first `i`
    tokens have matched what was read so far. A character moves a bit on where the token accepts it,
    and leaves it where a `*` stands: `state' = ((state & accepts(char)) << 1) | (state & stars)`.

    Args:
        text: The pattern.

    Example:
        >>> from deepseek_hpf.scheduling.patterns import PathPattern
        >>> PathPattern("encoder/*/dense_[0-4]").matches("encoder/block_2/attention/dense_3")
        True

    References:
        R. Baeza-Yates and G. Gonnet, "A new approach to text searching", CACM 35(10), 1992
        (Shift-And).
    """

    def __init__(self, text: str):
        self.text = text
        self.is_literal = not any(c in text for c in "*?[")
        self._stars = 0
        self._any = 0
        self._literals: dict[str, int] = {}
        self._brackets: list[tuple[int, _Bracket]] = []
        self._accepts: dict[str, int] = {}
        bit = 1
        for token in _tokens(text):
            if token == "*":
                self._stars |= bit
                continue
            if token == "?":
                self._any |= bit
            elif isinstance(token, _Bracket):
                self._brackets.append((bit, token))
            else:
                char = token[1]
                self._literals[char] = self._literals.get(char, 0) | bit
            bit <<= 1
        self._last = bit

    def matches(self, path: str) -> bool:
        """Whether the whole of `path` matches.

        Args:
            path: A layer's path.

        Returns:
            True or False, after at most one step a character.
        """
        if self.is_literal:
            return path == self.text
        state, stars = 1, self._stars
        for char in path:
            accepts = self._accepts.get(char)
            if accepts is None:
                accepts = self._accepts[char] = self._accepting(char)
            state = ((state & accepts) << 1) | (state & stars)
            if not state:
                return False
        return bool(state & self._last)

    def _accepting(self, char: str) -> int:
        """The tokens that accept a character, as bits."""
        accepts = self._any | self._literals.get(char, 0)
        for bit, bracket in self._brackets:
            if bracket.accepts(char):
                accepts |= bit
        return accepts


@lru_cache(maxsize=1024)
def compiled(text: str) -> PathPattern:
    """A pattern, made once.

    Args:
        text: The pattern.

    Returns:
        The same `PathPattern` for the same text.
    """
    return PathPattern(text)


def escape(path: str) -> str:
    """Returns the pattern that matches a path and nothing else.

    Args:
        path: Any text.

    Returns:
        The text with what a pattern reads as a wildcard in brackets.

    Example:
        >>> from deepseek_hpf.scheduling.patterns import PathPattern, escape
        >>> escape("what?")
        'what[?]'
        >>> PathPattern(escape("[*]")).matches("[*]")
        True
    """
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)


def _tokens(text: str) -> list[str | _Bracket]:
    """`"*"`, `"?"`, a bracket, or a backslash followed by the character that stands for itself."""
    tokens: list[str | _Bracket] = []
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "[" and (end := _bracket_end(text, position)) is not None:
            tokens.append(_bracket(text[position:end]))
            position = end + 1
        elif char in "*?":
            tokens.append(char)
        else:
            tokens.append(f"\\{char}")
    return tokens


def _bracket_end(text: str, start: int) -> int | None:
    """Index of the `]` that closes the bracket; one that comes first is a member of it."""
    first = start + text.startswith("!", start)
    end = text.find("]", first + 1)
    return end if end >= 0 else None


def _bracket(members: str) -> _Bracket:
    """Reads what is between the brackets. A range that runs backwards holds nothing."""
    negated = members.startswith("!")
    members = members[negated:]
    ranges = []
    position = 0
    while position < len(members):
        low = high = members[position]
        if members[position + 1 : position + 2] == "-" and position + 2 < len(members):
            high = members[position + 2]
            position += 2
        ranges.append(_Range(low, high))
        position += 1
    return _Bracket(tuple(ranges), negated)
