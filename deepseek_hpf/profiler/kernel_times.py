"""Times of XLA's kernels, given to the operations that the kernels were made of. Pure Python."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from deepseek_hpf.profiler.census_operations import TracedOperation

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
# Their time is that of the kernels inside, which have times of their own.
_CONTAINER = re.compile(r"[\s)](?:while|conditional|call)\(")
# What JAX puts into a name for the way in which a function is called.
_CALLS = re.compile(
    r"jit\(.*\)|pjit|while|body|cond|closed_call|checkpoint|remat\d?|branch_\d+_fun|custom_[jv].*"
)


class Kernel(NamedTuple):
    """One kernel of a compiled program, as it ran.

    Args:
        names: Names of the operations it was made of, its result's first.
        seconds: Time of all its runs in a step.
    """

    names: tuple[str, ...]
    seconds: float


def kernels_of(hlo: str, seconds: Mapping[str, float]) -> list[Kernel]:
    """Finds what each timed instruction of a compiled program was made of.

    Args:
        hlo: The program as XLA prints it.
        seconds: Time by name of instruction.

    Returns:
        The kernels, loops and calls left out.

    Example:
        >>> text = '''
        ... %fused (a: f32[8]) -> f32[] {
        ...   %dot.1 = f32[] dot(%a, %a), metadata={op_name="jit(f)/dense/dot_general"}
        ...   ROOT %neg.1 = f32[] negate(%dot.1), metadata={op_name="jit(f)/dense/neg"}
        ... }
        ... ENTRY %main (a: f32[8]) -> f32[] {
        ...   ROOT %fusion = f32[] fusion(%a), calls=%fused, metadata={op_name="jit(f)/dense/neg"}
        ... }'''
        >>> kernels_of(text, {"fusion": 0.5})
        [Kernel(names=('dense/neg', 'dense/dot_general'), seconds=0.5)]
    """
    inside: dict[str, list[str]] = defaultdict(list)
    lines: dict[str, str] = {}
    place = ""
    for line in hlo.splitlines():
        if (computation := _COMPUTATION.match(line)) is not None:
            place = computation[1]
        elif (instruction := _INSTRUCTION.match(line)) is not None:
            lines[instruction[1]] = line
            inside[place].append(line)
    timed = [(lines[name], time) for name, time in seconds.items() if name in lines]
    return [
        Kernel(tuple(dict.fromkeys(_names(line, inside))), time)
        for line, time in timed
        if not _CONTAINER.search(line)
    ]


def _names(line: str, inside: Mapping[str, list[str]]) -> list[str]:
    found = [plain_name(name) for name in _NAME.findall(line)]
    for called in _CALLED.findall(line):
        for inner in inside.get(called, ()):
            found += _names(inner, inside)
    return found


def plain_name(name: str) -> str:
    """An operation's name without the way in which it was called.

    Args:
        name: As JAX gives it to XLA.

    Returns:
        The scopes and the primitive.

    Example:
        >>> plain_name("jit(step)/jvp(lstm)/while/body/closed_call/cell/dot_general")
        'jvp(lstm)/cell/dot_general'
    """
    return "/".join(part for part in name.split("/") if part and not _CALLS.fullmatch(part))


def with_times(
    operations: Sequence[TracedOperation], kernels: Iterable[Kernel]
) -> tuple[list[TracedOperation], float]:
    """Gives each kernel's time to that operation in it which has the most arithmetic.

    Where nothing in it calculates, it is what the kernel's result is. Operations of one name share
    the time by the bytes that they read and write.

    Args:
        operations: Those of a step.
        kernels: The kernels that it was compiled to.

    Returns:
        The operations with their times, and the seconds of kernels that fit no operation.
    """
    named: dict[str, list[int]] = defaultdict(list)
    for index, operation in enumerate(operations):
        named[plain_name(f"{operation.place}/{operation.kind}")].append(index)

    def flops(name: str) -> float:
        return sum(operations[index].flops * operations[index].times for index in named[name])

    seconds: dict[int, float] = defaultdict(float)
    lost = 0.0
    for kernel in kernels:
        known = [name for name in kernel.names if name in named]
        if not known:
            lost += kernel.seconds
            continue
        sharing = named[max(known, key=flops)]
        bytes_of = [max(1, operations[i].bytes * operations[i].times) for i in sharing]
        for index, share in zip(sharing, bytes_of, strict=True):
            seconds[index] += kernel.seconds * share / sum(bytes_of)
    timed = [each._replace(seconds=seconds.get(i)) for i, each in enumerate(operations)]
    return timed, lost
