"""The memory of training a transformer on many devices, by formula: no model is built.

What is kept for the backward pass follows Korthikanti et al. 2022: a layer keeps, for a sequence of
s tokens, b rows, a width of h and a heads, 16 s b h values and 2 s b h bytes of dropout masks, and
in its attention 2 a s^2 b values and a s^2 b bytes of masks. In 16 bits these are their
s b h (34 + 5 a s / h) bytes.
"""

from dataclasses import dataclass

from deepseek_hpf.config_wording import nearest_hint
from deepseek_hpf.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A decoder with learned positions and tied embeddings, as GPT-2 and GPT-3 are.

    Args:
        layers: How many.
        width: Of the residual stream; the hidden layers are four times as wide.
        heads: Of the attention.
        length: Tokens of a row.
        vocabulary: Different tokens.

    Example:
        >>> round(PRESETS["gpt3-175b"].parameters / 1e9, 1)
        174.6
    """

    layers: int
    width: int
    heads: int
    length: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Weights: 12 h^2 + 13 h in each layer, the embeddings, the last normalization."""
        h = self.width
        each = 12 * h * h + 13 * h
        return self.layers * each + (self.vocabulary + self.length) * h + 2 * h

    def kept(self, rows: int, value_bytes: float, *, attention: bool = True) -> float:
        """Bytes that all layers keep for the backward pass, on one device.

        Args:
            rows: Of the micro-batch.
            value_bytes: Of a value; masks take a byte each in any case.
            attention: Whether the scores are kept; recomputing them is the paper's "selective
                activation recomputation".

        Returns:
            Bytes.

        Example:
            >>> one = Transformer(layers=1, width=64, heads=4, length=32, vocabulary=100)
            >>> one.kept(2, 2) == 32 * 2 * 64 * (34 + 5 * 4 * 32 / 64)
            True
        """
        s, b, h = self.length, rows, self.width
        scores = self.heads * s * s * b * (2 * value_bytes + 1) if attention else 0
        return self.layers * (s * b * h * (16 * value_bytes + 2) + scores)


PRESETS = {
    "gpt2-xl": Transformer(layers=48, width=1600, heads=25, length=1024, vocabulary=50257),
    "gpt3-13b": Transformer(layers=40, width=5120, heads=40, length=2048, vocabulary=50257),
    "gpt3-175b": Transformer(layers=96, width=12288, heads=96, length=2048, vocabulary=50257),
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """How training holds its state: bytes of one parameter, and of one value that is kept.

    Args:
        name: For the table.
        weight: Bytes of a weight.
        master: Bytes of what its master has beyond the weight.
        gradient: Bytes of a gradient.
        moments: Bytes of both of Adam's moments.
        value: Bytes of a value that is kept for the backward pass.
    """

    name: str
    weight: float
    master: float
    gradient: float
    moments: float
    value: float


# A quantised block of 256 moments has one float32 scale.
_INT8_MOMENTS = 2 * (1 + 4 / 256)
FLOAT32 = Form(name="float32", weight=4, master=0, gradient=4, moments=8, value=4)
FORMS = (
    FLOAT32,
    Form(name="bfloat16, float32 masters", weight=2, master=4, gradient=2, moments=8, value=2),
    Form(name="bfloat16, split masters", weight=2, master=2, gradient=2, moments=8, value=2),
    Form(
        name="bfloat16, float32 masters, 8-bit moments",
        weight=2,
        master=4,
        gradient=2,
        moments=_INT8_MOMENTS,
        value=2,
    ),
    Form(
        name="bfloat16, split masters, 8-bit moments",
        weight=2,
        master=2,
        gradient=2,
        moments=_INT8_MOMENTS,
        value=2,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a training is spread.

    Args:
        devices: How many hold a part of weights, masters, gradients and moments each.
        tensor_parallel: How many share a layer, its activations included (sequence parallelism); a
            pipeline's first stage keeps as much as all layers of one micro-batch do.
        micro_batch: Rows.
        attention: Whether the attention's scores are kept.
    """

    devices: int
    tensor_parallel: int
    micro_batch: int
    attention: bool = True

    def __post_init__(self) -> None:
        for name in ("devices", "tensor_parallel", "micro_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"Expected `{name}` to be 1 or more. Received: {getattr(self, name)}"
                )
        if self.devices % self.tensor_parallel:
            raise ConfigError(
                "Expected `devices` to be a multiple of `tensor_parallel`. "
                f"Received: devices={self.devices}, tensor_parallel={self.tensor_parallel}"
            )


def per_device(model: Transformer, form: Form, layout: Layout) -> dict[str, float]:
    """Bytes on one device, term by term.

    Args:
        model: The transformer.
        form: How it holds its state.
        layout: How it is spread.

    Returns:
        Term to bytes; the last one is their sum.

    Example:
        >>> layout = Layout(devices=64, tensor_parallel=8, micro_batch=1)
        >>> found = per_device(PRESETS["gpt3-175b"], FLOAT32, layout)
        >>> list(found)
        ['weights', 'masters', 'gradients', "Adam's moments", 'activations kept', 'total']
        >>> round(found["weights"] / 1e9, 2)
        10.91
    """
    part = model.parameters / layout.devices
    kept = model.kept(layout.micro_batch, form.value, attention=layout.attention)
    terms = {
        "weights": part * form.weight,
        "masters": part * form.master,
        "gradients": part * form.gradient,
        "Adam's moments": part * form.moments,
        "activations kept": kept / layout.tensor_parallel,
    }
    return {**terms, "total": sum(terms.values())}


def preset(name: str) -> Transformer:
    """Returns a model by name.

    Args:
        name: A key of `PRESETS`.

    Returns:
        The model.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in PRESETS:
        hint = nearest_hint(name, PRESETS)
        raise ConfigError(f"Expected one of {', '.join(PRESETS)}. Received: {name!r}.{hint}")
    return PRESETS[name]
