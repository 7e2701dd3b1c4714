"""Which values a backward pass keeps, and in what form, so that they take the fewest bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from deepseek_hpf.storage.derivative_jax import Derivative, is_literal
from deepseek_hpf.storage.ordering_jax import after, before
from deepseek_hpf.storage.packed_once_jax import PackedOnce
from deepseek_hpf.storage.packed_values_jax import Form, Whole, bytes_of, form_of
from deepseek_hpf.storage.stored_call import Settings

STATISTICS = 64  # times smaller than the largest value is what is kept exactly
# Operations that cost less than the memory of their results.
_CHEAP = frozenset(
    ["abs", "add", "add_any", "and", "broadcast_in_dim", "ceil", "clamp", "convert_element_type",
     "copy", "cos", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expand_dims", "expm1",
     "floor", "ge", "gt", "integer_pow", "iota", "is_finite", "le", "log", "log1p", "logistic",
     "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "reduce_precision", "reshape",
     "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "squeeze", "stop_gradient",
     "sub", "tan", "tanh", "transpose", "xor"]
)  # fmt: skip
# What a weight passes through on its way to the operation that keeps it.
_VIEWS = frozenset(
    ["broadcast_in_dim", "convert_element_type", "expand_dims", "reshape", "squeeze", "transpose"]
)
# What decides by comparing values, which rounded ones would have it do otherwise.
_COMPARING = frozenset({"reduce_window_max", "reduce_window_min", "select_and_gather_add"})


@dataclass(frozen=True)
class KeptValues:
    """What is kept.

    Args:
        forms: How each value is kept, by its variable.
    """

    forms: dict[Any, Form]

    @property
    def variables(self) -> list[Any]:
        """The variables."""
        return list(self.forms)

    @property
    def kept_bytes(self) -> float:
        """Bytes kept, what others keep anyway left out."""
        return sum(form.kept_bytes(var.aval) for var, form in self.forms.items())

    def pack(
        self, outputs: list[Any], values: Sequence[Any], once: PackedOnce
    ) -> tuple[list[Any], list[Any]]:
        """Packs what is kept, before anybody uses the outputs.

        Args:
            outputs: What the forward pass returns.
            values: The values of `variables`.
            once: What has been packed already.

        Returns:
            The outputs, and the packed values.
        """
        pairs = self._with_forms(values)
        packed = [v if isinstance(f, Whole) else once.find(v, f) for v, f in pairs]
        missing = [pairs[place] for place, found in enumerate(packed) if found is None]
        forms = [form for _, form in missing]

        def pack_missing(*values: Any) -> list[Any]:
            return [form.pack(value) for form, value in zip(forms, values, strict=True)]

        held, fresh = before(outputs, pack_missing, *(value for value, _ in missing))
        # What comes next sees the outputs that were held back, not those that were packed.
        seen_as = {id(output): later for output, later in zip(outputs, held, strict=True)}
        for (value, form), new in zip(missing, fresh, strict=True):
            once.note(value, form, new)
            once.note(seen_as.get(id(value), value), form, new)
        following = iter(fresh)
        return held, [next(following) if found is None else found for found in packed]

    def restore(self, packed: Sequence[Any], gradients: Any) -> list[Any]:
        """Unpacks what is kept, as soon as gradients are there and not before.

        Args:
            packed: What `pack` has returned.
            gradients: Arrays.

        Returns:
            The values of `variables`.
        """
        held = iter(after(gradients, [v for v, f in self._with_forms(packed) if f.held]))
        values = [next(held) if form.held else value for value, form in self._with_forms(packed)]
        pairs = zip(self.forms.items(), values, strict=True)
        return [form.restore(value, var.aval) for (var, form), value in pairs]

    def _with_forms(self, values: Sequence[Any]) -> list[tuple[Any, Form]]:
        return list(zip(values, self.forms.values(), strict=True))


def kept_values(found: Derivative, variables: Sequence[bool], settings: Settings) -> KeptValues:
    """Decides what is kept.

    A value is kept itself, or what it is made of by cheap operations where that takes fewer bytes:
    of batch normalisation's centred, squared and scaled input the input alone.

    Args:
        found: The derivative.
        variables: For each captured value, whether it is a variable's.
        settings: How.

    Returns:
        The decision. To recompute all, what goes in is kept.
    """
    if settings.storage == "recompute":
        return KeptValues(_all_that_goes_in(found, variables))
    return _Choice(found, variables, settings).made()


def _all_that_goes_in(found: Derivative, variables: Sequence[bool]) -> dict[Any, Form]:
    jaxpr = found.jaxpr
    forms: dict[Any, Form] = {var: Whole(held=True) for var in (*jaxpr.constvars, *jaxpr.invars)}
    for var, own in zip(jaxpr.invars, variables, strict=False):
        # A seed is held as well, or what has been drawn by it would be kept.
        if own and jnp.issubdtype(var.aval.dtype, jnp.floating):
            forms[var] = Whole(free=True)
    return forms


class _Choice:
    def __init__(self, found: Derivative, variables: Sequence[bool], settings: Settings):
        self._jaxpr = found.jaxpr
        self._settings = settings
        self._needed = found.kept
        captured = zip(found.jaxpr.invars, variables, strict=False)
        self._free = {*found.jaxpr.constvars, *(var for var, own in captured if own)}
        self._compared: set[Any] = set()
        largest = max((bytes_of(atom.aval) for atom in self._needed), default=0)
        # What is a statistic next to the values, one for each row of them, stays exact.
        self._smallest = max(settings.smallest, largest // STATISTICS)
        self._origins = {var: frozenset({var}) for var in (*self._free, *found.jaxpr.invars)}
        for equation in found.jaxpr.eqns:
            self._note(equation)

    def made(self) -> KeptValues:
        needed = dict.fromkeys(atom for atom in self._needed if not is_literal(atom))
        themselves = {var: frozenset({var}) for var in needed}
        made_again = {var: self._origins[var] for var in needed}
        for var in sorted(needed, key=lambda v: -bytes_of(v.aval)):
            others = _union(origins for v, origins in made_again.items() if v is not var)
            if self._cost({var} - others) <= self._cost(made_again[var] - others):
                made_again[var] = themselves[var]
        choices = (_union(made_again.values()), _union(themselves.values()))
        kept = min(choices, key=self._cost)
        return KeptValues({v: self._form(v) for v in self._all_variables() if v in kept})

    def _note(self, equation: Any) -> None:
        inputs = [atom for atom in equation.invars if not is_literal(atom)]
        name = equation.primitive.name
        if name in _VIEWS and inputs and self._free.issuperset(inputs):
            self._free.update(equation.outvars)
        elif name in _COMPARING:
            self._compared.update(inputs[:1])
        origins = _union(self._origins[atom] for atom in inputs)
        cheap = name in _CHEAP and not self._free.issuperset(equation.outvars)
        for var in equation.outvars:
            made_again = cheap and self._is_worth_making(var, origins)
            self._origins[var] = origins if made_again else frozenset({var})

    def _is_worth_making(self, var: Any, origins: frozenset[Any]) -> bool:
        if bytes_of(var.aval) < self._smallest:
            return False
        if not self._form(var).exact:
            return True
        exact = all(self._form(origin).exact for origin in origins)
        return exact and self._cost(origins) < self._cost({var})

    def _form(self, var: Any) -> Form:
        if var in self._free or var in self._compared:
            return Whole(free=var in self._free)
        settings = self._settings
        return form_of(var.aval, settings.storage, settings.seed, self._smallest)

    def _cost(self, variables: Iterable[Any]) -> float:
        return sum(self._form(var).kept_bytes(var.aval) for var in variables)

    def _all_variables(self) -> list[Any]:
        made = [var for equation in self._jaxpr.eqns for var in equation.outvars]
        return [*self._jaxpr.constvars, *self._jaxpr.invars, *made]


def _union(sets: Iterable[frozenset[Any]]) -> frozenset[Any]:
    return frozenset().union(*sets)
