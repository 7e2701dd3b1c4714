"""What dtype policy a layer can have, given what it already is: its variables, its kind."""

import keras

LOW_PRECISION = frozenset({"float16", "bfloat16"})
# They hand their inputs to a module of another framework, whose weights Keras does not cast.
FOREIGN = frozenset({"TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer"})
_MIXED = {
    ("float16", "float32"): "mixed_float16",
    ("bfloat16", "float32"): "mixed_bfloat16",
}


def is_low(dtype: str) -> bool:
    """Whether a compute dtype has 16 bits.

    Args:
        dtype: Name of the dtype.

    Returns:
        True for float16 and bfloat16.
    """
    return dtype in LOW_PRECISION


def reason_to_leave(layer: keras.Layer) -> str | None:
    """Says why the policy of a layer is not touched, whatever the rules say.

    Args:
        layer: The layer.

    Returns:
        The reason; None where nothing stands against a change.
    """
    policy = layer.dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        return "it has a DTypePolicyMap, which decides by itself"
    if policy.quantization_mode is not None:
        return f"it is quantized ({policy.quantization_mode})"
    if type(layer).__name__ in FOREIGN:
        return "it runs a module of another framework, whose weights are not cast"
    if not keras.backend.is_float_dtype(layer.compute_dtype):
        return f"it computes in {layer.compute_dtype}, which is no float dtype"
    return None


def held_variable_dtype(layer: keras.Layer) -> str | None:
    """The float dtype of the variables that a layer itself has.

    Args:
        layer: The layer; variables of its sub-layers do not count.

    Returns:
        The dtype: what the policy says if any variable has it, else the first variable's; None
        where there are no float variables (yet).
    """
    held = [v.dtype for v in [*layer._trainable_variables, *layer._non_trainable_variables]]
    floats = [dtype for dtype in held if keras.backend.is_float_dtype(dtype)]
    if layer.variable_dtype in floats:
        return str(layer.variable_dtype)
    return str(floats[0]) if floats else None


def truthful_policy(layer: keras.Layer, wanted: str) -> tuple[str, str | None]:
    """The policy nearest to a wanted one that says the truth about the layer's variables.

    A built variable keeps its dtype: a policy that says otherwise would be a lie that is saved.

    Args:
        layer: The layer.
        wanted: Name of the wanted policy.

    Returns:
        The name of the policy to set, and a sentence where it is not the wanted one.
    """
    held = held_variable_dtype(layer)
    policy = keras.DTypePolicy(wanted)
    if held is None or policy.variable_dtype == held:
        return wanted, None
    if policy.compute_dtype == held:
        return held, f"{held} instead of {wanted}, since its variables are {held}"
    mixed = _MIXED.get((policy.compute_dtype, held))
    if mixed is not None:
        return mixed, f"{mixed} instead of {wanted}, since its variables are {held}"
    return layer.dtype_policy.name, (
        f"not {wanted}: its variables are {held}, and a built variable keeps its dtype; "
        "build the model in the policy's scope"
    )
