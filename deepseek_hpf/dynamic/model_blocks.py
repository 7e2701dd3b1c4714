"""Which layers of a model a controller may move, in which blocks, and which go first."""

import keras

from deepseek_hpf.adapters.layer_dtype import is_low, reason_to_leave, truthful_policy
from deepseek_hpf.adapters.planning import is_container
from deepseek_hpf.adapters.walk import WalkedLayer, walk
from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.scheduling.blocks import Block, blocks_of

CRITICAL = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.Add,
    keras.layers.Softmax,
    keras.layers.Attention,
)
_SOFTMAXES = (keras.activations.softmax, keras.activations.log_softmax)


def model_blocks(model: keras.Model, plan: PrecisionPlan, most: int) -> tuple[Block, ...]:
    """Groups the layers of a model that compute low into blocks.

    A layer made of layers (an attention, an RNN with its cell, a block of one's own) moves as a
    whole: its code may rely on one dtype. A functional or sequential model within the model is
    none: its layers move each in its own block. Under TensorFlow, whose `+` refuses tensors of two
    dtypes, all layers of a subclassed model move together: its code may add up their results.

    Args:
        model: A built model.
        plan: The plan that it runs under.
        most: Largest number of blocks.

    Returns:
        The blocks, in the order of the model; layers that are in float32, or whose variables
        forbid it, are in none.

    Example:
        >>> import keras
        >>> from deepseek_hpf import apply_policy
        >>> from deepseek_hpf.dynamic.model_blocks import model_blocks
        >>> layers = [keras.layers.Dense(4, name=name) for name in ("stem", "body", "head")]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> report = apply_policy(model, "mixed_bfloat16")
        >>> [block.name for block in model_blocks(model, report.plan, most=8)]
        ['stem', 'body']
    """
    walked = walk(model)
    if keras.backend.backend() == "tensorflow" and not is_container(model):
        together = tuple(w.path for w in walked if _is_free(w, plan))
        return (Block(model.name, together),) if together else ()
    units = _units(walked)
    held = {path: [w.path for w in unit if _is_free(w, plan)] for path, unit in units.items()}
    free = [path for path, layers in held.items() if layers]
    critical = [path for path in free if _is_critical(units[path][0].layer)]
    return tuple(
        Block(block.name, tuple(p for path in block.layers for p in held[path]), block.critical)
        for block in blocks_of(free, most, critical)
    )


def _units(walked: list[WalkedLayer]) -> dict[str, list[WalkedLayer]]:
    """The layers that compute by themselves, each with all that it holds."""
    units: dict[str, list[WalkedLayer]] = {}
    unit_of: dict[str, str] = {}
    for w in walked:
        unit = unit_of.get(w.parent or "")
        if unit is None and is_container(w.layer):
            continue
        unit = unit_of[w.path] = unit or w.path
        units.setdefault(unit, []).append(w)
    return units


def _is_free(walked: WalkedLayer, plan: PrecisionPlan) -> bool:
    layer = walked.layer
    policy = plan[walked.path].policy if walked.path in plan else None
    if policy is None or reason_to_leave(layer) is not None:
        return False
    return is_low(keras.DTypePolicy(policy).compute_dtype) and (
        truthful_policy(layer, "float32")[0] == "float32"
    )


def _is_critical(layer: keras.Layer) -> bool:
    softmax = any(getattr(layer, "activation", None) is each for each in _SOFTMAXES)
    return softmax or isinstance(layer, CRITICAL)
