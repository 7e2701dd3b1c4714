"""Which values a backward pass keeps, and in what form, so that they take the fewest bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from deepseek_hpf.storage.derivative_jax import Derivative, is_literal
from deepseek_hpf.storage.packed_values_jax import Form, Whole, bytes_of, form_of
from deepseek_hpf.storage.stored_call import Settings

# Operations that cost less than the memory of their results.
_CHEAP = frozenset(
    ["abs", "add", "add_any", "and", "broadcast_in_dim", "ceil", "clamp", "convert_element_type",
     "copy", "cos", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expand_dims", "expm1",
     "floor", "ge", "gt", "integer_pow", "iota", "is_finite", "le", "log", "log1p", "logistic",
     "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "reduce_precision", "reshape",
     "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "squeeze", "stop_gradient",
     "sub", "tan", "tanh", "transpose", "xor"]
)  # fmt: skip
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

    def pack(self, values: Sequence[Any]) -> list[Any]:
        """Packs what is kept.

        Args:
            values: The values of `variables`.

        Returns:
            The packed values.
        """
        return [form.pack(value) for form, value in zip(self.forms.values(), values, strict=True)]

    def restore(self, packed: Sequence[Any]) -> list[Any]:
        """Unpacks what is kept.

        Args:
            packed: What `pack` has returned.

        Returns:
            The values of `variables`.
        """
        pairs = zip(self.forms.items(), packed, strict=True)
        return [form.restore(value, var.aval) for (var, form), value in pairs]


def kept_values(found: Derivative, variables: Sequence[bool], settings: Settings) -> KeptValues:
    """Decides what is kept.

    A value is kept itself, or what it is made of by cheap operations where that takes fewer bytes:
    of batch normalisation's centred, squared and scaled input the input alone.

    Args:
        found: The derivative.
        variables: For each captured value, whether it is a variable's.
        settings: How.

    Returns:
        The decision.
    """
    return _Choice(found, variables, settings).made()


class _Choice:
    def __init__(self, found: Derivative, variables: Sequence[bool], settings: Settings):
        self._jaxpr = found.jaxpr
        self._settings = settings
        self._needed = found.kept
        captured = zip(found.jaxpr.invars, variables, strict=False)
        self._free = {*found.jaxpr.constvars, *(var for var, own in captured if own)}
        self._compared: set[Any] = set()
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
        if inputs and self._free.issuperset(inputs) and not equation.effects:
            self._free.update(equation.outvars)
        elif equation.primitive.name in _COMPARING:
            self._compared.update(inputs[:1])
        origins = _union(self._origins[atom] for atom in inputs)
        cheap = equation.primitive.name in _CHEAP and not self._free.issuperset(equation.outvars)
        for var in equation.outvars:
            made_again = cheap and self._is_worth_making(var, origins)
            self._origins[var] = origins if made_again else frozenset({var})

    def _is_worth_making(self, var: Any, origins: frozenset[Any]) -> bool:
        if bytes_of(var.aval) < self._settings.smallest:
            return False
        if not self._form(var).exact:
            return True
        exact = all(self._form(origin).exact for origin in origins)
        return exact and self._cost(origins) < self._cost({var})

    def _form(self, var: Any) -> Form:
        if var in self._free or var in self._compared:
            return Whole(free=var in self._free)
        settings = self._settings
        return form_of(var.aval, settings.storage, settings.seed, settings.smallest)

    def _cost(self, variables: Iterable[Any]) -> float:
        return sum(self._form(var).kept_bytes(var.aval) for var in variables)

    def _all_variables(self) -> list[Any]:
        made = [var for equation in self._jaxpr.eqns for var in equation.outvars]
        return [*self._jaxpr.constvars, *self._jaxpr.invars, *made]


def _union(sets: Iterable[frozenset[Any]]) -> frozenset[Any]:
    return frozenset().union(*sets)
