"""Shell-style patterns: the language of `fnmatch`, without its regular expressions."""

import fnmatch

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from deepseek_hpf.scheduling.patterns import PathPattern

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("stem*", "stem/conv", True),
        ("stem*", "a/stem", False),
        ("*/conv", "a/b/conv", True),
        ("*/conv", "conv", False),
        ("dense_?", "dense_1", True),
        ("dense_?", "dense_12", False),
        ("dense_[0-3]", "dense_3", True),
        ("dense_[!0-3]", "dense_3", False),
        ("Dense", "dense", False),
        ("*", "", True),
        ("", "", True),
        ("?", "", False),
        ("**", "a/b", True),
        ("a[", "a[", True),  # nothing closes it: an ordinary character
        ("a[b", "ab", False),
        ("[]]", "]", True),
        ("[!]]", "]", False),
        ("[]", "[]", True),
        ("[!]", "[!]", True),
        ("[*]", "*", True),
        ("[*]", "a", False),
        ("[z-a]", "b", False),  # runs backwards: holds nothing
        ("[!z-a]", "b", True),
        ("[a-]", "-", True),
        ("a\\*", "a\\b", True),  # a backslash is an ordinary character
        ("größe?", "größe😀", True),
        (".+", "aa", False),
    ],
)
def test_language(pattern, path, expected):
    assert PathPattern(pattern).matches(path) is expected


def runs_backwards(pattern: str) -> bool:
    """Whether a range may hold nothing: there `fnmatch` reads what is left in surprising ways."""
    return any(
        pattern[i] > pattern[i + 2] for i in range(len(pattern) - 2) if pattern[i + 1] == "-"
    )


@settings(max_examples=500, deadline=None)
@given(st.text("ab-]![*?/^\\", max_size=9), st.text("ab-]!/^[\\", max_size=7))
def test_agrees_with_fnmatch(pattern, path):
    assume(not runs_backwards(pattern))
    assert PathPattern(pattern).matches(path) == fnmatch.fnmatchcase(path, pattern)


class CountedPath(str):
    """A path that counts how often one of its characters was looked at."""

    steps = 0

    def __iter__(self):
        for char in super().__iter__():
            self.steps += 1
            yield char


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "pattern", ["*a" * 500, "*a*?" * 250 + "b", "a*" * 400 + "[!a]", "*[a-c]" * 160]
)
def test_a_path_is_read_once_whatever_the_pattern(pattern):
    path = CountedPath("a" * 10_000)
    PathPattern(pattern).matches(path)
    assert path.steps <= len(path)
    assert PathPattern("*a" * 500 + "b").matches("a" * 10_000) is False
    assert PathPattern("*a" * 500).matches("a" * 10_000) is True
