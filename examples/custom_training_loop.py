"""A training loop of one's own in mixed precision, on each of Keras's back ends.

    KERAS_BACKEND=jax python examples/custom_training_loop.py --policy mixed_float16

Two calls are what precision adds to such a loop: `optimizer.scale_loss(loss)` before the gradients
are taken, and `hpf.apply_policy(model, policy)` once, after `compile`, which gives the model its
optimizer. That one takes the scale out of the gradients again and skips a step whose gradients are
not finite. Only `fit` and `train_on_batch` also take back what else a skipped step has changed,
such as moving statistics: this model has none.
"""

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

import deepseek_hpf as hpf

Step = Callable[[Any, Any], Any]


def create_model() -> keras.Model:
    """Returns a small convolutional network for 8 by 8 pixels, compiled."""
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="stem"),
        keras.layers.MaxPooling2D(name="pool"),
        keras.layers.Conv2D(64, 3, padding="same", activation="relu", name="body"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(10, name="logits"),
    ]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    return model


def tensorflow_step(model: keras.Model) -> Step:
    """A step as TensorFlow's users write it."""
    tf = importlib.import_module("tensorflow")  # and no other framework
    optimizer, loss_of = model.optimizer, model.loss

    @tf.function
    def step(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step


def jax_step(model: keras.Model) -> Step:
    """A step as JAX's users write it: the state goes in, and a new one comes out."""
    jax = importlib.import_module("jax")
    optimizer, loss_of = model.optimizer, model.loss
    groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)

    def objective(trainable: Any, others: Any, slots: Any, images: Any, labels: Any) -> Any:
        outputs, others = model.stateless_call(trainable, others, images, training=True)
        loss = loss_of(labels, outputs)
        with keras.StatelessScope(list(zip(optimizer.variables, slots, strict=True))):
            return optimizer.scale_loss(loss), (loss, others)

    @jax.jit
    def new_state(state: Any, images: Any, labels: Any) -> Any:
        gradients, (loss, others) = jax.grad(objective, has_aux=True)(*state, images, labels)
        trainable, _, slots = state
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return loss, (trainable, others, slots)

    def step(images: Any, labels: Any) -> Any:
        state = tuple([variable.value for variable in group] for group in groups)
        loss, state = new_state(state, images, labels)
        for group, values in zip(groups, state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        return loss

    return step


def torch_step(model: keras.Model) -> Step:
    """A step as PyTorch's users write it."""
    torch = importlib.import_module("torch")
    optimizer, loss_of = model.optimizer, model.loss
    variables = model.trainable_variables

    def step(images: Any, labels: Any) -> Any:
        model.zero_grad()
        loss = loss_of(labels, model(images, training=True))
        optimizer.scale_loss(loss).backward()
        with torch.no_grad():
            optimizer.apply([variable.value.grad for variable in variables], variables)
        return loss

    return step


STEPS = {"tensorflow": tensorflow_step, "jax": jax_step, "torch": torch_step}


def accuracy(model: keras.Model, images: Any, labels: Any) -> float:
    """Returns the share of images that are recognized."""
    found = keras.ops.argmax(model(images, training=False), axis=-1)
    return float(np.mean(keras.ops.convert_to_numpy(found) == labels))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="auto", help="auto, or a Keras policy name")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains, prints a line an epoch, and returns the accuracy on the images for testing."""
    given = parse(arguments)
    keras.utils.set_random_seed(given.seed)
    policy = hpf.MixedPrecisionPolicy(given.policy)
    with policy.scope():
        model = create_model()
    print(hpf.apply_policy(model, policy))
    model.optimizer.build(model.trainable_variables)
    step = STEPS[keras.backend.backend()](model)
    (images, labels), test = hpf.data.digits()
    random = np.random.default_rng(given.seed)
    for epoch in range(given.epochs):
        order = random.permutation(len(labels))
        starts = range(0, len(labels) - given.batch_size + 1, given.batch_size)
        batches = [order[start : start + given.batch_size] for start in starts]
        losses = [step(*map(keras.ops.convert_to_tensor, (images[b], labels[b]))) for b in batches]
        mean = float(np.mean([keras.ops.convert_to_numpy(loss) for loss in losses]))
        print(
            f"epoch {epoch + 1}: loss {mean:.3f}, accuracy {accuracy(model, *test):.3f}, "
            f"loss scale {float(model.optimizer.dynamic_scale):g}, "
            f"skipped steps {int(model.optimizer.skipped_steps)}"
        )
    return accuracy(model, *test)


if __name__ == "__main__":
    main()
