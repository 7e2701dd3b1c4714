"""`export`: a copy of a model with nothing of this package in it, in another precision if asked."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from deepseek_hpf.adapters.export_config import config_in, masters_of, with_dtype
from deepseek_hpf.adapters.layer_dtype import is_low
from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.errors import ConfigError, ConfigTypeError, PrecisionError
from deepseek_hpf.files import StrPath


def export(
    model: keras.Model, path: StrPath | None = None, dtype: str | None = None
) -> keras.Model:
    """Copies a model for inference: no wrappers, no guard, no optimizer, only standard policies.

    The copy is what loading the file gives: a file keeps the policies of the layers that a
    configuration holds; a composite layer (`MultiHeadAttention`) gives its own to the layers inside
    it. A layer whose result was cast to float32 by us is itself in float32, so that the copy's
    outputs are float32 as well; operations that are no layers, and the code of a subclassed model,
    compute in what they are given. The layers that a subclassed model makes in its constructor get
    the model's own policy, which its file does not hold: load that in the scope of the policy. The
    copy is not compiled. It does not share weights with the model.

    Args:
        model: A built functional or sequential model, or a subclassed one that has `get_config` and
            `from_config`.
        path: Where to save the copy too, a `.keras` file. What was there is replaced at once, or
            not at all if anything fails.
        dtype: Name of a policy for all layers, `"float32"`, `"bfloat16"`, `"mixed_bfloat16"`, …;
            None keeps what each layer has. For `"float32"` the weights come from the optimizer's
            float32 masters where it keeps any.

    Returns:
        The copy.

    Raises:
        ConfigError: The model is not built or cannot be copied, the dtype is no policy, or the path
            does not end in `.keras`.
        PrecisionError: A finite weight would be infinite in `dtype`.
        OSError: The place cannot be written.

    Example:
        >>> import keras
        >>> from deepseek_hpf import apply_policy, export
        >>> hidden, head = keras.layers.Dense(2), keras.layers.Dense(1)
        >>> model = keras.Sequential([keras.Input((4,)), hidden, head])
        >>> _ = apply_policy(model, "mixed_bfloat16")
        >>> [layer.dtype_policy.name for layer in export(model).layers]
        ['mixed_bfloat16', 'float32']
        >>> [layer.dtype_policy.name for layer in export(model, dtype="float32").layers]
        ['float32', 'float32']
    """
    _check(model, path, dtype)
    with _sources(model), _global_policy(dtype or model.dtype_policy.name):
        copy = _made_from(model, dtype)
    if dtype is not None:
        with_dtype(copy, dtype)
    _copy_weights(model, copy, masters_of(model) if dtype == "float32" else {})
    if path is not None:
        _save_atomically(copy, Path(path))
    return copy


def _check(model: object, path: StrPath | None, dtype: str | None) -> None:
    if not isinstance(model, keras.Model):
        raise ConfigTypeError(
            f"Expected `model` to be a keras.Model. Received: model={model!r} "
            f"(of type {type(model)})"
        )
    if not all(layer.built for layer in model._flatten_layers()):
        raise ConfigError(
            "Expected a built model, which has weights to copy. Call it on a batch, or `build` it "
            f"first. Received: model={model!r}"
        )
    if path is not None and not str(path).endswith(".keras"):
        raise ConfigError(f"Expected a path that ends in '.keras'. Received: path={path!r}")
    if dtype is None:
        return
    try:
        policy = keras.DTypePolicy(dtype)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Expected the name of a dtype policy. Received: dtype={dtype!r}"
        ) from error
    if not keras.backend.is_float_dtype(policy.compute_dtype):
        raise ConfigError(f"Expected a float dtype or policy. Received: dtype={dtype!r}")


@contextlib.contextmanager
def _sources(model: keras.Model) -> Iterator[None]:
    """Makes the model's own layer classes known by name, registered or not."""
    classes = {type(w.layer).__name__: type(w.layer) for w in walk(model)}
    own = {n: c for n, c in classes.items() if not c.__module__.startswith("keras.")}
    with keras.saving.custom_object_scope(own):
        yield


@contextlib.contextmanager
def _global_policy(name: str) -> Iterator[None]:
    """What a subclassed model makes in its constructor gets the global policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(keras.DTypePolicy(name))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _made_from(model: keras.Model, dtype: str | None) -> keras.Model:
    try:
        copy = type(model).from_config(config_in(model, dtype))
        if not copy.built:
            copy.build_from_config(model.get_build_config() or {})
    except (NotImplementedError, TypeError, ValueError, KeyError) as error:
        raise _no_copy(model, "cannot be made from its configuration") from error
    if len(copy.weights) != len(model.weights):
        raise _no_copy(model, f"has {len(copy.weights)} weights of {len(model.weights)}")
    return copy


def _no_copy(model: keras.Model, what: str) -> ConfigError:
    return ConfigError(
        f"Expected a model that `{type(model).__name__}.from_config(model.get_config())` makes "
        f"anew; its copy {what}. Give a subclassed model `get_config` and `from_config`, and a "
        f"`build` that makes its layers. Received: model={model!r}"
    )


def _copy_weights(source: keras.Model, copy: keras.Model, masters: dict[int, Any]) -> None:
    for old, new in zip(source.variables, copy.variables, strict=True):
        value = keras.ops.convert_to_tensor(masters.get(id(old), old))
        if not keras.backend.is_float_dtype(new.dtype):
            new.assign(value)
            continue
        cast = keras.ops.cast(value, new.dtype)
        if is_low(new.dtype) and _overflows(value, cast):
            raise PrecisionError(
                f"The variable {old.path!r} has finite values that are infinite in {new.dtype}. "
                "Export to bfloat16 or float32, or keep this layer in float32 by a rule."
            )
        new.assign(cast)


def _overflows(value: Any, cast: Any) -> bool:
    lost = keras.ops.logical_and(
        keras.ops.isfinite(value), keras.ops.logical_not(keras.ops.isfinite(cast))
    )
    return bool(keras.ops.convert_to_numpy(keras.ops.any(lost)))


def _save_atomically(model: keras.Model, path: Path) -> None:
    """Saves beside the place and renames: a reader finds the old file or the new one."""
    target = Path(os.path.realpath(path))
    with contextlib.ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix=f".{target.name[:64]}.", dir=target.parent)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        temporary = Path(folder) / "model.keras"
        model.save(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
