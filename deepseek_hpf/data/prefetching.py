"""`prefetch`: batches are read, cast and copied to the device while the step before computes."""

import importlib
import types
from types import ModuleType
from typing import Any

import keras

from deepseek_hpf.data.prefetched import PrefetchedData
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.policy import MixedPrecisionPolicy

AUTO = "auto"
CASTS = ("float16", "bfloat16", "float32", "float64")


def prefetch(
    dataset: Any,
    policy: "MixedPrecisionPolicy | keras.DTypePolicy | str | None" = None,
    *,
    depth: int = 2,
    dtype: str | None = AUTO,
) -> Any:
    """Has the next batches made ready while the model trains on the present one.

    Decoding and augmentation run ahead in a thread of their own (tf.data's under TensorFlow), the
    inputs are cast on the host to the dtype that the model computes in, half the bytes for 16 bits,
    and copied to the device: under JAX by `jax.device_put`, under PyTorch from pinned memory on a
    stream of its own, under TensorFlow by `prefetch_to_device`. On a CPU there is nothing to copy.

    Batches come in the same order as without, an exception of the pipeline is raised where its
    batch would have come, and the thread ends with the epoch. What a pipeline draws from NumPy's
    global generator while it runs, it draws in that thread: give it a generator of its own if
    the training loop draws as well.

    Args:
        dataset: What `model.fit` takes and brings batches by itself: a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a PyTorch `DataLoader`, a grain dataset, or a generator.
        policy: Says what inputs are cast to: its compute dtype, if no rule of its configuration has
            a layer compute in another. Targets and sample weights are never cast, nor integers.
            None casts nothing.
        depth: Batches that are ready at most. The device holds as many more.
        dtype: `"auto"` for that of the policy; the name of a floating dtype; or None, to leave
            inputs as they are, as a model needs whose first layer computes in float32 (a
            `Normalization` of wide-ranged features, say).

    Returns:
        For `fit`, `evaluate`, `predict` and loops of one's own. A `tf.data.Dataset` for a
        `tf.data.Dataset` under TensorFlow, else `PrefetchedData`, which can be iterated, each time
        from the start if the data can.

    Raises:
        ConfigTypeError: It is not data in batches, or not a policy.
        ConfigError: `depth` is below 1, or there is no such floating dtype.

    Example:
        >>> import deepseek_hpf as hpf
        >>> train, test = hpf.data.digits(batch_size=64)
        >>> ahead = hpf.data.prefetch(train, "mixed_bfloat16")
        >>> images, labels = next(iter(ahead))
        >>> keras.backend.standardize_dtype(images.dtype)
        'bfloat16'

    References:
        - [tf.data](https://www.tensorflow.org/guide/data_performance),
          [PyTorch: pinned memory](https://docs.pytorch.org/docs/stable/notes/cuda.html)
    """
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
        raise ConfigError(f"Expected a number of batches, at least 1. Received: depth={depth!r}")
    to = _checked_dtype(dtype) if dtype != AUTO else _dtype_of(policy)
    placing = _placing()
    if keras.backend.backend() == "tensorflow" and placing.is_dataset(dataset):
        return placing.ahead(dataset, to, depth)
    one_shot = isinstance(dataset, types.GeneratorType)
    return PrefetchedData(_adapter(dataset), placing, to, depth, one_shot=one_shot)


def _dtype_of(policy: Any) -> str | None:
    if policy is None:
        return None
    if isinstance(policy, MixedPrecisionPolicy) and _has_other_dtypes(policy):
        return None
    if isinstance(policy, keras.DTypePolicy | str):
        try:
            return _checked_dtype(
                str(keras.DTypePolicy(getattr(policy, "name", policy)).compute_dtype)
            )
        except ValueError as error:
            raise ConfigError(
                f"Expected the name of a dtype policy. Received: policy={policy!r}"
            ) from error
    raise ConfigTypeError(
        "Expected a policy, its name, or None. Received: "
        f"policy={policy!r} (of type {type(policy).__name__})"
    )


def _has_other_dtypes(policy: MixedPrecisionPolicy) -> bool:
    """Whether a rule has some layers compute in another dtype: those that take inputs, maybe."""
    names = {rule.policy for rule in policy.config.rules if rule.policy is not None}
    dtypes = {MixedPrecisionPolicy(name).compute_dtype for name in names}
    return not dtypes <= {policy.compute_dtype}


def _checked_dtype(dtype: str | None) -> str | None:
    if dtype is None or dtype in CASTS:
        return dtype
    raise ConfigError(f"Expected one of {', '.join(CASTS)}, or None. Received: dtype={dtype!r}")


def _adapter(dataset: Any) -> Any:
    """Keras's own reader of the data."""
    from keras.src.trainers import data_adapters  # the readers have no public access

    if isinstance(dataset, PrefetchedData):
        raise ConfigTypeError("This data is prefetched already. Pass what was given to `prefetch`.")
    try:
        adapter = data_adapters.get_data_adapter(dataset)
    except ValueError:
        adapter = None
    if adapter is None or isinstance(adapter, data_adapters.ArrayDataAdapter):
        raise ConfigTypeError(
            "Expected data that comes in batches: a tf.data.Dataset, a keras.utils.PyDataset, a "
            "PyTorch DataLoader, a grain dataset or a generator. Received: an object of type "
            f"{type(dataset).__name__}. `fit` reads arrays in memory without waiting for them."
        )
    return adapter


def _placing() -> ModuleType:
    return importlib.import_module(f"deepseek_hpf.data.placing_{keras.backend.backend()}")
