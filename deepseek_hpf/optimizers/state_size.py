"""How many bytes a parameter takes while it is trained: weight, master and Adam's moments."""

from dataclasses import dataclass

from deepseek_hpf.config import MASTER_FORMS
from deepseek_hpf.errors import ConfigError

# What a large variable of these dtypes is trained as: 4, or 2 for float16 and bfloat16.
WEIGHTS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


@dataclass(frozen=True)
class StateSize:
    """Bytes of one parameter, gradients and activations left out.

    Args:
        weight: What the model computes with.
        master: What is kept beside the weight, so that no update is lost.
        moments: Both moments of Adam.
    """

    weight: float
    master: float
    moments: float

    @property
    def total(self) -> float:
        """Bytes of all."""
        return self.weight + self.master + self.moments


def bytes_per_parameter(
    variable_dtype: str,
    master_weights: bool | str = False,
    *,
    moments_in_8_bits: bool = False,
    block_size: int = 256,
) -> StateSize:
    """Returns how many bytes a parameter of a large variable takes with Adam.

    | weights  | `master_weights` | weight | master | moments | total | total with `Adam8bit` |
    | -------- | ---------------- | ------ | ------ | ------- | ----- | --------------------- |
    | float32  | any              | 4      | 0      | 8       | 12    | 6.03                  |
    | bfloat16 | False            | 2      | 0      | 4       | 6     | 4.03                  |
    | bfloat16 | True             | 2      | 4      | 8       | 14    | 8.03                  |
    | bfloat16 | "split"          | 2      | 2      | 8       | 12    | 6.03                  |
    | bfloat16 | "stochastic"     | 2      | 0      | 8       | 10    | 4.03                  |
    | float16  | True, "split"    | 2      | 4      | 8       | 14    | 8.03                  |
    | float16  | "stochastic"     | 2      | 0      | 8       | 10    | 4.03                  |

    Without masters Keras keeps moments in the dtype of the weight. While an update runs, the part
    of it that is not fused needs a float32 copy of weights and moments for a while.

    Args:
        variable_dtype: `"float32"`, `"bfloat16"` or `"float16"`.
        master_weights: As for `LossScaleOptimizer`.
        moments_in_8_bits: Whether the inner optimizer is `Adam8bit` or `AdamW8bit`.
        block_size: Of that optimizer.

    Returns:
        The bytes.

    Raises:
        ConfigError: There is no such dtype or form.

    Example:
        >>> from deepseek_hpf.optimizers import bytes_per_parameter
        >>> bytes_per_parameter("bfloat16", "split")
        StateSize(weight=2.0, master=2.0, moments=8.0)
        >>> bytes_per_parameter("bfloat16", "split", moments_in_8_bits=True).total
        6.03125
    """
    if variable_dtype not in WEIGHTS or master_weights not in MASTER_FORMS:
        raise ConfigError(
            f"Expected one of {', '.join(WEIGHTS)}, and one of {MASTER_FORMS} for "
            f"`master_weights`. Received: variable_dtype={variable_dtype!r}, "
            f"master_weights={master_weights!r}"
        )
    weight = WEIGHTS[variable_dtype]
    low = variable_dtype != "float32"
    masters = {False: 0.0, True: 4.0, "stochastic": 0.0}
    masters["split"] = 2.0 if variable_dtype == "bfloat16" else 4.0
    # A master, and a weight that is rounded at random, is float32 for the optimizer.
    moment = weight if low and not master_weights else 4.0
    moments = 2.0 * (1.0 + 4.0 / block_size if moments_in_8_bits else moment)
    return StateSize(weight, masters[master_weights] if low else 0.0, moments)
