"""One training of the demonstration, by `model.fit`."""

import hashlib
import importlib.metadata
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from deepseek_hpf.callbacks.precision_overrides import PrecisionOverrides
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.data.batches import make_batches
from deepseek_hpf.data.digits_dataset import CLASSES, digits
from deepseek_hpf.data.image_datasets import images, prepared_builder
from deepseek_hpf.demo.records import (
    EpochDone,
    Event,
    RunResult,
    RunSettings,
    RunStart,
    StepDone,
)
from deepseek_hpf.demo.resnet import create_resnet20
from deepseek_hpf.files import cache_directory
from deepseek_hpf.memory.process_memory import peak_memory
from deepseek_hpf.policy import MixedPrecisionPolicy

LEARNING_RATE = 0.05  # at batch size 32; in proportion to the batch size elsewhere
_FRAMEWORKS = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}


class TrainingData(NamedTuple):
    """Batches for `fit`, and what a model has to know of them."""

    train: Any
    test: Any
    image_shape: tuple[int, int, int]
    classes: int


def load_data(settings: RunSettings) -> TrainingData:
    """Loads the data of a run.

    Args:
        settings: Of the run.

    Returns:
        Training batches, in an order that the seed decides, and test batches.

    Raises:
        ConfigError: As `data.digits` and `data.images`.
    """
    options: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
    if settings.dataset != "digits":
        info = prepared_builder(settings.dataset, cache_directory(settings.cache_dir)).info
        train, test = images(settings.dataset, cache_dir=settings.cache_dir, **options)
        return TrainingData(
            train, test, info.features["image"].shape, info.features["label"].num_classes
        )
    (pictures, labels), held_out = digits(size=settings.image_size, cache_dir=settings.cache_dir)
    chosen = pictures[: settings.limit], labels[: settings.limit]
    train = make_batches(chosen, settings.batch_size, shuffle=True, seed=settings.seed)
    test = make_batches(held_out, settings.batch_size, shuffle=False, seed=settings.seed)
    return TrainingData(train, test, pictures.shape[1:], CLASSES)


def train(
    settings: RunSettings,
    report: Callable[[Event], None] = lambda event: None,
    wait: Callable[[], None] = lambda: None,
) -> RunResult:
    """Trains a ResNet-20 from a seed, under a policy or, for comparison, in plain float32.

    It sets Keras's random seeds.

    Args:
        settings: Of the run.
        report: Is told of the start, of each step and of each epoch.
        wait: Is called before each epoch, and may block.

    Returns:
        What was measured.

    Raises:
        ConfigError: The settings name something that is not there, or that cannot be.
    """
    policy = _make_policy(settings)
    keras.utils.set_random_seed(settings.seed)  # first: the order of tf.data depends on it too
    data = load_data(settings)
    keras.utils.set_random_seed(settings.seed)
    with policy.scope():
        model = create_resnet20(data.image_shape, data.classes)
        _compile(model, settings, steps=settings.epochs * len(data.train))
    start = _describe(model, policy, settings, data)
    report(start)
    recorder = _Recorder(report, wait)
    protections = [PrecisionOverrides(policy)] if settings.policy else []
    model.fit(
        data.train,
        validation_data=data.test,
        epochs=settings.epochs,
        verbose=0,
        callbacks=[*protections, recorder],
    )
    return RunResult(
        start=start,
        epochs=tuple(recorder.epochs),
        peak_memory=peak_memory(),
        dynamic_scale=_dynamic_scale(model.optimizer),
        skipped_steps=_integer(getattr(model.optimizer, "skipped_steps", None)),
    )


def _make_policy(settings: RunSettings) -> MixedPrecisionPolicy:
    if settings.policy is None:
        return MixedPrecisionPolicy("float32")
    config = PrecisionConfig.from_json(settings.config_path) if settings.config_path else None
    return MixedPrecisionPolicy(settings.policy, config=config)


def _compile(model: keras.Model, settings: RunSettings, *, steps: int) -> None:
    """He et al.'s optimizer, SGD with momentum 0.9, at a rate that falls to zero along a cosine."""
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE * settings.batch_size / 32, steps)
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def _describe(
    model: keras.Model, policy: MixedPrecisionPolicy, settings: RunSettings, data: TrainingData
) -> RunStart:
    backend = keras.backend.backend()
    framework = _FRAMEWORKS.get(backend, backend)
    return RunStart(
        policy_name=policy.name,
        reason=policy.reason if settings.policy else "the run to compare with",
        backend=backend,
        versions={name: importlib.metadata.version(name) for name in ("keras", framework)},
        steps_per_epoch=len(data.train),
        image_shape=data.image_shape,
        classes=data.classes,
        parameters=model.count_params(),
        initial_weights=_digest(model.get_weights()),
    )


def _digest(weights: list[Any]) -> str:
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(np.ascontiguousarray(weight, dtype=np.float32).tobytes())
    return digest.hexdigest()


def _dynamic_scale(optimizer: Any) -> float | None:
    if not getattr(optimizer, "scales_loss", True):
        return None
    scale = getattr(optimizer, "dynamic_scale", None)
    return None if scale is None else float(keras.ops.convert_to_numpy(scale))


def _integer(variable: Any) -> int | None:
    return None if variable is None else int(keras.ops.convert_to_numpy(variable))


class _Recorder(keras.callbacks.Callback):
    """Times the steps and reports; reading the loss waits for the step to be done."""

    def __init__(self, report: Callable[[Event], None], wait: Callable[[], None]):
        super().__init__()
        self.epochs: list[EpochDone] = []
        self._report = report
        self._wait = wait
        self._step_seconds: list[float] = []
        self._began = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._wait()
        self._step_seconds = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = _number(logs, "loss")
        self._step_seconds.append(time.perf_counter() - self._began)
        self._report(StepDone(epoch=len(self.epochs), step=batch, loss=loss))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        done = EpochDone(
            epoch=epoch,
            loss=_number(logs, "loss"),
            test_loss=_number(logs, "val_loss"),
            test_accuracy=_number(logs, "val_accuracy"),
            step_seconds=tuple(self._step_seconds),
        )
        self.epochs.append(done)
        self._report(done)


def _number(logs: Any, name: str) -> float:
    return float((logs or {}).get(name, math.nan))
