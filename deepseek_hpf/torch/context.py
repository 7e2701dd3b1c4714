"""`HybridPrecisionContext`: mixed precision around a PyTorch loop that is left as it is."""

import logging
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch

from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.config_like import ConfigLike, as_config
from deepseek_hpf.torch.agreement import NoAgreement
from deepseek_hpf.torch.entry import Entry
from deepseek_hpf.torch.loss_scale import LossScale
from deepseek_hpf.torch.master_weights import masters_for
from deepseek_hpf.torch.precision import choose_precision
from deepseek_hpf.torch.regions import refuse_policies
from deepseek_hpf.torch.verdicts import Verdicts

logger = logging.getLogger(__name__)


class HybridPrecisionContext:
    """Mixed precision around a PyTorch loop that is left as it is.

    Within the context

    - the model computes under autocast, in the dtype that the device does best;
    - `Tensor.backward` leaves true gradients: where the dtype is float16, the loss is scaled and
      each gradient is divided when it arrives, so that `.grad` never holds a scaled one;
    - an optimizer step whose gradients are not all finite is skipped: no weight and no slot
      changes, and the loss scale backs off; running statistics of batch normalization that are no
      longer finite are set back (not in compiled models);
    - other steps are clipped as the configuration says.

    `torch.autograd.backward` and `torch.autograd.grad` are not scaled. Tensors between the loss and
    the leaves (`retain_grad`, their hooks) see scaled gradients, as with `torch.amp`. Other
    threads, and what is outside of the `with` block, are left alone. Of nested contexts the
    innermost acts. One context may be entered again and again, by several threads too; its loss
    scale and counters go on.

    The configuration's rules select modules by path, with dots or slashes, and by class; the path
    starts at the outermost module that is called. Clipping that is `adaptive` takes an index of the
    first axis as a unit, which PyTorch keeps for outputs.

    Rules with `activations` have what the operations of a module save for the backward pass kept in
    8 bits (`"int8"`), in 4, or exactly where that takes fewer bytes (`"sparse"`): never parameters,
    nothing under 4 KiB, and what is not finite as it is. Results of the forward pass do not change.

    A model that was converted to float16 or bfloat16 is refused, unless the configuration has
    `master_weights`: then its gradients are float32, and optimizers update float32 masters, which
    are in `state_dict`.

    Args:
        precision_mode: `"auto"` (what `config` says, else what the hardware does best), `"bf16"`,
            `"fp16"` or `"fp32"` (guard and clipping only).
        config: A `PrecisionConfig`, a dictionary of the same form, or the path of a JSON file; None
            for the defaults.
        device: A type of device, to look at no other; None for the CPU and the accelerator.

    Raises:
        ConfigError: An argument is out of range, contradicts another, or asks for what this machine
            does not have.

    Example:
        >>> import torch
        >>> from deepseek_hpf.torch import HybridPrecisionContext
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with HybridPrecisionContext(precision_mode="fp16") as context:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         loss = model(torch.full((8, 4), 0.1)).float().square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        >>> context.skipped_steps, context.scale
        (0, 32768.0)

    References:
        - [Mixed Precision Training](https://arxiv.org/abs/1710.03740)
    """

    def __init__(
        self,
        precision_mode: str = "auto",
        config: ConfigLike | None = None,
        *,
        device: "str | torch.device | None" = None,
    ):
        self._config = as_config(config)
        self._precision = choose_precision(precision_mode, self._config, device)
        refuse_policies(self._config.rules)
        logger.info("Autocast: %s. %s", self._precision.dtypes, self._precision.reason)
        self._loss_scale = LossScale(self._config.loss_scale)
        self._masters = masters_for(self._config.master_weights)
        self._verdicts = Verdicts(self._loss_scale, self._config.clipping, self._masters)
        self._entries = threading.local()
        _tell_of_ignored(self._config)

    @property
    def config(self) -> PrecisionConfig:
        """The configuration."""
        return self._config

    @property
    def reason(self) -> str:
        """One sentence saying why these dtypes."""
        return self._precision.reason

    @property
    def scale(self) -> float:
        """What the next float16 loss is multiplied by; 1.0 where scaling is off."""
        return self._loss_scale.scale

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps skipped; never reset."""
        return self._verdicts.skipped_steps

    @property
    def consecutive_skips(self) -> int:
        """Optimizer steps skipped in a row; reset by a step that is done."""
        return self._verdicts.consecutive_skips

    @property
    def clipped_steps(self) -> int:
        """Optimizer steps whose gradient was clipped; never reset."""
        return self._verdicts.clipped_steps

    @property
    def gradient_norm(self) -> float:
        """Norm of the last step's gradients before clipping, all together."""
        return self._verdicts.gradient_norm

    def autocast_dtype(self, device: "str | torch.device") -> torch.dtype:
        """Returns the dtype of autocast on a type of device; float32 where there is none."""
        return self._precision.dtypes.get(torch.device(device).type, torch.float32)

    @property
    def autocast_dtypes(self) -> dict[str, torch.dtype]:
        """Type of device to dtype of autocast; float32 where there is none."""
        return dict(self._precision.dtypes)

    def agree_by(self, agreement: NoAgreement) -> None:
        """Has steps judged together with other processes, as `distributed.coordinate` does.

        Args:
            agreement: Judges the gradients from now on.
        """
        self._verdicts.agreement = agreement

    def state_dict(self) -> dict[str, Any]:
        """Returns the loss scale, the counters and the masters.

        Returns:
            The keys of `torch.amp.GradScaler.state_dict`, which can load it, and some more.
        """
        return {
            **self._loss_scale.state_dict(),
            **self._verdicts.state_dict(),
            "masters": self._masters.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the loss scale, the counters and the masters.

        Args:
            state: What `state_dict` of a context or of an enabled `torch.amp.GradScaler` returned.

        Raises:
            ConfigError: It is neither.
        """
        self._loss_scale.load_state_dict(state)
        self._verdicts.load_state_dict(state)
        self._masters.load_state_dict(state.get("masters", ()))

    def __enter__(self) -> Self:
        entry = Entry(
            self._precision.dtypes,
            rules=self._config.rules,
            loss_scale=self._loss_scale,
            verdicts=self._verdicts,
            masters=self._masters,
        )
        self._stack().append(entry.enter())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack().pop().close()

    def _stack(self) -> list[ExitStack]:
        if not hasattr(self._entries, "stack"):
            self._entries.stack = []
        stack: list[ExitStack] = self._entries.stack
        return stack


def _tell_of_ignored(config: PrecisionConfig) -> None:
    """Warns of what a file, shared with Keras, asks for and this context does not do."""
    asked = {"backward" for rule in config.rules if rule.backward is not None}
    if any(rule.activations == "recompute" for rule in config.rules):
        asked.add('"activations": "recompute" (use torch.utils.checkpoint)')
    if config.activations is not None:
        asked.add("memory_goal")
    if config.dynamic is not None:
        asked.add("dynamic")
    if asked:
        logger.warning("Without effect on plain PyTorch so far: %s.", ", ".join(sorted(asked)))
