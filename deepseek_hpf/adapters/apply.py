"""`apply_policy`: brings a policy with its rules and its protections to a model."""

import logging

import keras

from deepseek_hpf.adapters.applied import Applied
from deepseek_hpf.adapters.report import OverrideReport
from deepseek_hpf.adapters.tuned import with_tuned
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.policy import MixedPrecisionPolicy

logger = logging.getLogger(__name__)


def apply_policy(
    model: keras.Model,
    policy: MixedPrecisionPolicy | keras.DTypePolicy | PrecisionConfig | str,
    *,
    dynamic: bool = False,
) -> OverrideReport:
    """Gives every layer the precision that a policy and its rules ask for, and guards the training.

    For each layer the first of these decides:

    1. What cannot be changed stays: a quantized layer, one with a `DTypePolicyMap`, one that does
       not compute in a float dtype. A built variable keeps its dtype, and the layer's policy tells
       the truth about it.
    2. The last rule that hits the layer, or a layer that holds it, and that sets `policy`.
    3. A critical layer is in float32: softmax (inside attention, too, where Keras does not fuse
       it), group normalization, the model's output. A large output layer, or one made of several,
       stays low; its result is cast, and its activation runs in float32.
    4. A layer whose policy is not the one the model was made under was given it: it keeps it.
    5. The policy. `"auto"` is what `tune` found for a model of this structure on this machine, with
       its rules, kernels and compiler; untuned, it is what the hardware is known for.

    The optimizer is wrapped in a `LossScaleOptimizer`, which scales the loss if any layer computes
    in float16; the training step is guarded, so that a skipped step leaves no trace; the compile
    configuration is updated. Compiled functions are made anew if anything changed. All of it is on
    the instances of this model. If anything fails half-way, the model is as it was.

    A second call with the same policy changes nothing; one with another policy replaces the first.
    After `model.compile` the optimizer is a new one: call again, or use
    `callbacks.PrecisionOverrides`, which does. What a layer makes when it is built gets its policy
    then.

    Args:
        model: Any Keras model, compiled or not, built or not.
        policy: A `MixedPrecisionPolicy`, the name of a policy, a plain `keras.DTypePolicy`, or a
            configuration.
        dynamic: Whether a controller will switch plans while the model trains, as
            `callbacks.DynamicPrecision` does. Without, the key "dynamic" is warned of.

    Returns:
        The report: one row for each layer.

    Raises:
        ConfigError: The policy is not one that a model can train under.
        ConfigTypeError: The model is not a Keras model, or the policy not a policy.

    Example:
        >>> import keras
        >>> from deepseek_hpf import apply_policy
        >>> hidden, head = keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2, name="head")
        >>> model = keras.Sequential([keras.Input((4,)), hidden, head])
        >>> report = apply_policy(model, "mixed_bfloat16")
        >>> [(row.path, row.after, row.reason) for row in report.rows]
        [('hidden', 'mixed_bfloat16', 'the policy'), ('head', 'float32', "the model's output")]
        >>> report.revert()
        >>> hidden.dtype_policy
        <DTypePolicy "float32">
    """
    if not isinstance(model, keras.Model):
        raise ConfigTypeError(
            f"Expected `model` to be a keras.Model. Received: model={model!r} "
            f"(of type {type(model)}). Put a layer into a keras.Sequential."
        )
    chosen, line = with_tuned(model, as_policy(policy))
    if line:
        logger.info("%s: %s", model.name, line)
    return Applied.to(model).apply(chosen, tuned=line, dynamic=dynamic)


def as_policy(policy: object) -> MixedPrecisionPolicy:
    """Makes a `MixedPrecisionPolicy` of what may stand for one.

    Args:
        policy: As `apply_policy` takes it.

    Returns:
        The policy.

    Raises:
        ConfigError: It is not one that a model can train under.
        ConfigTypeError: It is not a policy.
    """
    if isinstance(policy, PrecisionConfig):
        policy = MixedPrecisionPolicy(config=policy)
    elif isinstance(policy, str):
        policy = MixedPrecisionPolicy(policy)
    elif type(policy) in (keras.DTypePolicy, keras.dtype_policies.FloatDTypePolicy):
        policy = MixedPrecisionPolicy(policy.name)  # type: ignore[attr-defined]
    if not isinstance(policy, MixedPrecisionPolicy):
        raise ConfigTypeError(
            "Expected `policy` to be a MixedPrecisionPolicy, the name of a policy, a plain "
            f"keras.DTypePolicy or a PrecisionConfig. Received: policy={policy!r} "
            f"(of type {type(policy)})"
        )
    if not keras.backend.is_float_dtype(policy.compute_dtype):
        raise ConfigError(
            "Expected a policy that computes in a float dtype: nothing trains in another. "
            f"Received: policy={policy!r}"
        )
    return policy
