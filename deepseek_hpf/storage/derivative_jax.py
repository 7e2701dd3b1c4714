"""The derivative of a pure function, what it keeps for its backward pass laid open, under JAX."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from deepseek_hpf.storage.pure_call_jax import PureCall

_NESTED = ("jit", "pjit")


@dataclass(frozen=True)
class Derivative:
    """A forward pass that returns what its backward pass needs, and that pass.

    Args:
        jaxpr: From captured values and arrays to the outputs, and then to what is kept; without
            nested calls.
        constants: What `jaxpr` is closed over.
        outputs: The number of outputs.
        backward: From what is kept, and the outputs' gradients, to the gradients of captured values
            and arrays; None for those that have none.
    """

    jaxpr: Any
    constants: list[Any]
    outputs: int
    backward: Callable[[list[Any], list[Any]], list[Any]]

    @property
    def kept(self) -> list[Any]:
        """The variables of `jaxpr` that are kept, literals among them."""
        return list(self.jaxpr.outvars[self.outputs :])

    def forward(self, kept: Sequence[Any]) -> Callable[[Sequence[Any]], list[list[Any]]]:
        """The forward pass.

        Args:
            kept: Variables whose values to return.

        Returns:
            From captured values and arrays to the outputs and the values.
        """
        arguments = [*self.jaxpr.constvars, *self.jaxpr.invars]
        compute = self.part(arguments, [*self.jaxpr.outvars[: self.outputs], *kept])

        def forward(values: Sequence[Any]) -> list[list[Any]]:
            results = compute(*self.constants, *values)
            return [results[: self.outputs], results[self.outputs :]]

        return forward

    def part(self, given: Sequence[Any], wanted: Sequence[Any]) -> Callable[..., list[Any]]:
        """A part of the forward pass.

        Args:
            given: The variables that it starts from.
            wanted: The variables that it ends with, literals among them.

        Returns:
            From the values of the former to those of the latter.
        """
        missing = _variables(wanted).difference(given)
        equations = []
        for equation in reversed(self.jaxpr.eqns):
            if missing.intersection(equation.outvars):
                equations.append(equation)
                missing |= _variables(equation.invars).difference(given)
        return _evaluation(equations[::-1], given, wanted)


def derivative(pure: PureCall) -> Derivative:
    """Differentiates a call.

    Args:
        pure: The call.

    Returns:
        Its derivative with respect to all floating-point values that it takes.
    """
    values = [*pure.captured, *pure.arrays]
    moving = [place for place, value in enumerate(values) if _is_float(value)]
    floats = [place for place, v in enumerate(pure.jaxpr.outvars) if _is_float(v.aval)]
    trees: list[Any] = []

    def forward(*inner: Any) -> list[Any]:
        def compute(moved: list[Any]) -> tuple[list[Any], list[Any]]:
            full = list(inner)
            for place, value in zip(moving, moved, strict=True):
                full[place] = value
            outputs = pure(full[: len(pure.captured)], full[len(pure.captured) :])
            return [outputs[place] for place in floats], outputs

        _, pull_back, outputs = jax.vjp(compute, [inner[p] for p in moving], has_aux=True)
        kept, tree = jax.tree.flatten(pull_back)
        trees.append(tree)
        return [*outputs, *kept]

    def backward(kept: list[Any], gradients: list[Any]) -> list[Any]:
        pull_back = jax.tree.unflatten(trees[-1], kept)
        (moved,) = pull_back([gradients[place] for place in floats])
        result: list[Any] = [None] * len(values)
        for place, gradient in zip(moving, moved, strict=True):
            result[place] = gradient
        return result

    closed = jax.make_jaxpr(_flattened(jax.make_jaxpr(forward)(*values)))(*values)
    return Derivative(closed.jaxpr, closed.consts, len(pure.jaxpr.outvars), backward)


def is_literal(atom: Any) -> bool:
    """Whether an operand of an operation is a number written there.

    Args:
        atom: The operand.

    Returns:
        False for variables.
    """
    return isinstance(atom, Literal)


def _flattened(closed: Any) -> Callable[..., list[Any]]:
    """A computation, evaluated such that no call is left in a trace of it."""

    def evaluate(*arguments: Any) -> list[Any]:
        jaxpr = closed.jaxpr
        known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            inputs = [a.val if is_literal(a) else known[a] for a in equation.invars]
            if equation.primitive.name in _NESTED:
                outputs = _flattened(equation.params["jaxpr"])(*inputs)
            else:
                given = list(_variables(equation.invars))
                outputs = _evaluation([equation], given, equation.outvars)(*map(known.get, given))
            known.update(zip(equation.outvars, outputs, strict=True))
        return [atom.val if is_literal(atom) else known[atom] for atom in jaxpr.outvars]

    return evaluate


def _evaluation(
    equations: Sequence[Any], given: Sequence[Any], wanted: Sequence[Any]
) -> Callable[..., list[Any]]:
    return functools.partial(jax.core.eval_jaxpr, Jaxpr([], given, wanted, equations), ())


def _variables(atoms: Iterable[Any]) -> set[Any]:
    return {atom for atom in atoms if not is_literal(atom)}


def _is_float(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))
