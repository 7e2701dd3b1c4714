"""Tuned configurations that are kept: found again by the structure of a model."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import keras

from deepseek_hpf import hardware
from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.config import PrecisionConfig, PrecisionRule
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.measurement_cache import MeasurementCache
from deepseek_hpf.policy import MixedPrecisionPolicy
from deepseek_hpf.scheduling.patterns import escape

KIND = "plans"
_PACKAGES = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}


def structure_key(model: keras.Model) -> dict[str, Any]:
    """What a tuned configuration is valid for, apart from the batch.

    The names of layers do not count, since Keras numbers them through within a process. Where a
    model was built, under which policy, does not count either.

    Args:
        model: A built model.

    Returns:
        JSON values: the structure's digest, the back end, versions and devices.
    """
    layers = [
        [w.class_name, [list(v.shape) for v in w.layer.weights], _settings(w.layer)]
        for w in walk(model)
    ]
    text = json.dumps([type(model).__name__, layers], sort_keys=True, default=str)
    backend = keras.backend.backend()
    devices = hardware.usable_devices(backend)
    return {
        "structure": hashlib.sha256(text.encode()).hexdigest(),
        "backend": backend,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("keras", "deepseek_hpf", _PACKAGES[backend])
        },
        "devices": sorted({f"{device.name} {device.architecture}" for device in devices}),
    }


def keep(model: keras.Model, batch: Any, value: Mapping[str, Any]) -> None:
    """Keeps a tuned result for models of this structure.

    Args:
        model: The model.
        batch: Shapes and dtypes of what it was tuned on, as JSON values.
        value: The result, as JSON values; `"config"` in it is the configuration.
    """
    paths = [walked.path for walked in walk(model)]
    key = {**structure_key(model), "batch": batch}
    MeasurementCache(KIND).put(key, {**value, "paths": paths})


def find(model: keras.Model, batch: Any) -> dict[str, Any] | None:
    """Finds what was kept for a model and a batch.

    Args:
        model: A built model.
        batch: As for `keep`.

    Returns:
        What was kept, with its rules turned to the paths of this model; None if there is nothing.
    """
    found = MeasurementCache(KIND).get({**structure_key(model), "batch": batch})
    return None if found is None else _for(model, found)


def with_tuned(
    model: keras.Model, policy: MixedPrecisionPolicy
) -> tuple[MixedPrecisionPolicy, str]:
    """The policy that `"auto"` stands for on a model that has been tuned.

    What the user's configuration sets, its rules among it, goes before what was found.

    Args:
        model: The model.
        policy: A policy.

    Returns:
        The tuned policy and a line for the report; the policy itself and an empty line where it is
        not `"auto"`, the model is not built, or nothing was kept for it.
    """
    if not policy.is_auto or not model.built:
        return policy, ""
    key = structure_key(model)
    for kept, value in MeasurementCache(KIND).entries():
        if {name: kept.get(name) for name in key} != key:
            continue
        try:
            found = PrecisionConfig.from_dict(_for(model, value)["config"])
        except (ConfigError, KeyError, TypeError, ValueError):
            continue
        line = f'"auto" is {found.policy}, as tuned on batches of {_shown(kept.get("batch"))}'
        return MixedPrecisionPolicy(config=_joined(found, policy.config)), line
    return policy, ""


def _joined(found: PrecisionConfig, own: PrecisionConfig) -> PrecisionConfig:
    given = own.model_fields_set
    return own.replace(
        policy=found.policy,
        rules=(*found.rules, *own.rules),
        kernels=own.kernels if "kernels" in given else found.kernels,
        jit_compile=own.jit_compile if own.jit_compile is not None else found.jit_compile,
    )


def _for(model: keras.Model, value: Mapping[str, Any]) -> dict[str, Any]:
    """The kept value with the rules for single layers turned to the paths of this model."""
    now = [walked.path for walked in walk(model)]
    renamed = dict(zip(map(escape, value["paths"]), map(escape, now), strict=True))
    config = PrecisionConfig.from_dict(value["config"])
    rules = [_renamed(rule, renamed) for rule in config.rules]
    return {**value, "config": config.replace(rules=tuple(rules)).to_dict(), "paths": now}


def _renamed(rule: PrecisionRule, names: Mapping[str, str]) -> PrecisionRule:
    return rule if rule.layers is None else rule.replace(layers=names.get(rule.layers, rule.layers))


def _settings(layer: keras.Layer) -> Any:
    """What of a layer's configuration bears on its speed: all but names and dtypes."""
    try:
        config = layer.get_config()
    except Exception:  # noqa: BLE001 - a layer of the user's without a configuration
        return None
    simple = (bool, int, float, str, list, tuple, type(None))
    return {
        key: value
        for key, value in config.items()
        if key not in ("name", "dtype") and isinstance(value, simple) and "layers" not in key
    }


def _shown(batch: Any) -> str:
    return ", ".join(map(str, batch)) if isinstance(batch, list) else str(batch)
