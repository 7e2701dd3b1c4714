"""`OverrideReport`: what `apply_policy` did to every layer, and why."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from deepseek_hpf.plan import PrecisionPlan


@dataclass(frozen=True, kw_only=True)
class OverrideRow:
    """One layer.

    Args:
        path: The layer's path, as `adapters.walk` makes it.
        class_name: Name of its class.
        before: Name of its policy before.
        after: Name of its policy now.
        rule: Index of the rule that decided, from 0; None where a default did.
        reason: Why, in a few words.
        saved: Whether a `.keras` file keeps `after`. Keras does not save the policies of nested
            models, nor those of the layers that a composite layer or a subclassed model makes by
            itself; after loading, `apply_policy` sets them again.
        result_dtype: The dtype to which the layer's result is cast; None where it is left.
        kernel: Name of the fused kernel that computes the layer; None where Keras does.
        kernel_refusal: Why a kernel that is there for such layers does not compute this one.
        backward: `"float32"` where the gradients are computed so although the layer computes in 16
            bits; None where they are computed as the layer is.
        backward_refusal: Why they are not, although a rule wants it.
        activations: How it keeps what its backward pass needs, where a rule says so and it can.
        activations_refusal: Why it cannot.
    """

    path: str
    class_name: str
    before: str
    after: str
    rule: int | None
    reason: str
    saved: bool = True
    result_dtype: str | None = None
    kernel: str | None = None
    kernel_refusal: str | None = None
    backward: str | None = None
    backward_refusal: str | None = None
    activations: str | None = None
    activations_refusal: str | None = None

    @property
    def changed(self) -> bool:
        """Whether the policy is another one than before."""
        return self.before != self.after

    def with_before(self, before: str) -> "OverrideRow":
        """Derives the same row with another policy before.

        Args:
            before: Name of the policy.

        Returns:
            The row.
        """
        return replace(self, before=before)

    @property
    def source(self) -> str:
        """`"rules[2]"` or `"default"`."""
        return "default" if self.rule is None else f"rules[{self.rule}]"


@dataclass
class OverrideReport:
    """What `apply_policy` did. Prints as a table.

    A model that is not built yet may get layers when it is; the report then grows.

    Args:
        rows: One for each layer, parents before children.
        policy: Name of the policy applied.
        plan: The decisions as a value: layer path to `LayerPlan`.
        model: One line on the model's own policy.
        tuned: One line on the tuned plan that "auto" stands for; empty where there is none.
        optimizer: One line on the optimizer.
        guard: One line on the guard of the training step.
        jit_compile: One line; empty where the model's own setting is left.
        kernels: One line for each kind of fused kernel, and for each reason to do without; the same
            of kernels with float32 gradients.
        activations: One line for each way of keeping activations in fewer bytes, and for each
            reason not to.
        operations: One line for each operation, not being a layer, that computes in float32.
        warnings: What the user should know; also given as one Python warning.
        changed: Whether anything is other than before the call.
        is_complete: Whether every layer is built: one that is not may still make more.

    Example:
        >>> import keras
        >>> from deepseek_hpf import apply_policy
        >>> hidden, head = keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2, name="head")
        >>> report = apply_policy(
        ...     keras.Sequential([keras.Input((4,)), hidden, head]), "mixed_bfloat16"
        ... )
        >>> report.changed, report.row("head").after, report.row("head").reason
        (True, 'float32', "the model's output")
    """

    rows: list[OverrideRow]
    policy: str
    plan: PrecisionPlan
    model: str = ""
    tuned: str = ""
    optimizer: str = ""
    guard: str = ""
    jit_compile: str = ""
    kernels: list[str] = field(default_factory=list)
    activations: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    changed: bool = False
    is_complete: bool = True
    _revert: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    def revert(self) -> None:
        """Takes back everything that `apply_policy` has done to the model, in one call or several.

        Policies, optimizer, compile configuration, training step and layer calls are what they were
        before the first call; compiled functions are made anew. What has been changed by others
        since stays. A second call does nothing.
        """
        self._revert()

    def row(self, path: str) -> OverrideRow:
        """Finds a row.

        Args:
            path: The layer's path.

        Returns:
            Its row.

        Raises:
            KeyError: There is no such layer.
        """
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(path)

    @property
    def lines(self) -> list[str]:
        """What is said beneath the table."""
        said = [
            ("tuned", self.tuned),
            ("model", self.model),
            ("optimizer", self.optimizer),
            ("guard", self.guard),
            ("jit_compile", self.jit_compile),
            *(("kernels", line) for line in self.kernels),
            *(("activations", line) for line in self.activations),
            *(("operation", line) for line in self.operations),
            *(("warning", line) for line in self.warnings),
        ]
        lines = [f"{name}: {text}" for name, text in said if text]
        if not all(row.saved for row in self.rows):
            lines.append("* not kept in a .keras file; apply_policy sets it again after loading")
        return lines

    def __rich__(self) -> Group:
        table = Table()
        for title in ("layer", "class", "before", "after", "by", "reason"):
            table.add_column(title, overflow="fold")
        for row in self.rows:
            after = row.after if row.saved else f"{row.after}*"
            cells = (row.path, row.class_name, row.before, after, row.source, row.reason)
            # Text, not markup: a layer may be called "[red]".
            table.add_row(*map(Text, cells), style="bold" if row.changed else None)
        return Group(table, *map(Text, self.lines))

    def __str__(self) -> str:
        """The table as plain text."""
        console = Console(file=io.StringIO(), force_jupyter=False, width=160, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()
