# %% [markdown]
# # A ResNet in mixed precision
#
# **Author:** The deepseek_hpf authors<br>
# **Date created:** 2026/12/01<br>
# **Last modified:** 2026/12/01<br>
# **Description:** Train the same residual network in float32 and under a precision policy, and compare time, accuracy and memory.<br>
# **Accelerator:** GPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/deepseek-hpf/deepseek_hpf/blob/main/notebooks/resnet_mixed_precision.ipynb)

# %% [markdown]
# ## Setup
#
# On Colab this installs the package; where it is installed, nothing happens.

# %%
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("deepseek_hpf") is None:
    source = "deepseek_hpf[datasets,report] @ git+https://github.com/deepseek-hpf/deepseek_hpf"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import statistics
import time

import keras
import matplotlib.pyplot as plt

import deepseek_hpf as hpf

# %% [markdown]
# One switch: `FULL = False` runs offline on a CPU in less than a minute, with scikit-learn's handwritten
# digits. `FULL = True` is for a GPU, and downloads CIFAR-10 through TFDS.

# %%
FULL = False
DATASET = "cifar10" if FULL else "digits"
BLOCKS, WIDTH, BATCH_SIZE, EPOCHS = (3, 16, 128, 30) if FULL else (1, 16, 32, 8)
POLICY = "auto" if FULL else "mixed_bfloat16"  # or another Keras policy

# %% [markdown]
# ## What the policy chooses
#
# `"auto"` asks the hardware and the Keras back end, and says why it chose. The small setting trains in
# bfloat16 whatever that is, so that there is something to compare.

# %%
policy = hpf.MixedPrecisionPolicy(POLICY)
auto = hpf.MixedPrecisionPolicy("auto")
print(f"auto would choose {auto.name}: {auto.reason}")
print(f"here: {policy.name}")


# %% [markdown]
# ## Data and model
#
# Three stages of residual blocks, as He et al. have them for small images. The model is written as
# always in Keras: nothing in it knows of precision.


# %%
def load(seed=0):
    options = {"batch_size": BATCH_SIZE, "seed": seed}
    if DATASET == "digits":
        return hpf.data.digits(**options)
    return hpf.data.images(DATASET, **options)


def convolve(x, filters, strides=1):
    convolution = keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)
    return keras.layers.BatchNormalization(momentum=0.9)(convolution(x))


def block(x, filters, strides):
    shortcut = x
    if strides > 1 or x.shape[-1] != filters:
        shortcut = keras.layers.Conv2D(filters, 1, strides, use_bias=False)(x)
    x = keras.layers.ReLU()(convolve(x, filters, strides))
    x = convolve(x, filters)
    return keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))


def create_model(image_shape, steps):
    inputs = keras.Input(image_shape)
    x = keras.layers.ReLU()(convolve(inputs, WIDTH))
    for stage in range(3):
        for number in range(BLOCKS):
            x = block(x, WIDTH * 2**stage, strides=2 if stage and not number else 1)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x), name="resnet")
    rate = keras.optimizers.schedules.CosineDecay(0.05, steps)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


# %% [markdown]
# ## Train twice
#
# From the same seed, on the same batches. `scope()` makes the layers under the policy;
# `PrecisionOverrides` brings the rules and the protections. For float32 Keras is left alone.


# %%
class Clock(keras.callbacks.Callback):
    """Seconds of each step; the first ones, in which TensorFlow compiles, are left out."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self.began)

    @property
    def step(self):
        return statistics.median(self.seconds[5:])


def train(policy, callbacks):
    keras.utils.set_random_seed(0)
    batches, test = load()
    keras.utils.set_random_seed(0)
    image_shape = batches.element_spec[0].shape[1:]
    with policy.scope():
        model = create_model(image_shape, EPOCHS * len(batches))
    clock = Clock()
    # The batches come shuffled.
    fitted = model.fit(
        batches,
        validation_data=test,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, clock],
    )
    return model, fitted.history, clock.step


overrides = hpf.callbacks.PrecisionOverrides(policy)
runs = {
    "float32": train(hpf.MixedPrecisionPolicy("float32"), []),
    f"hpf, {policy.name}": train(policy, [overrides]),
}

# %% [markdown]
# What the policy made of each layer, and why:

# %%
print(overrides.report)

# %% [markdown]
# ## Accuracy and time

# %%
print(f"{'':24}{'test accuracy':>14}{'test loss':>11}{'ms a step':>11}")
for name, (_, history, seconds) in runs.items():
    accuracy, loss = history["val_accuracy"][-1], history["val_loss"][-1]
    print(f"{name:24}{accuracy:14.1%}{loss:11.4f}{1e3 * seconds:11.2f}")
(_, _, plain_seconds), (model, _, policy_seconds) = runs.values()
speedup = plain_seconds / policy_seconds
print(f"the policy's step is {speedup:.2f} times as fast as float32's")

# %% [markdown]
# A network as small as that of the small setting may gain nothing on a CPU, and on one without
# instructions for bfloat16 it loses. If the figure above is below 1, float32 is the right choice, and
# [`hpf.tune`](tune_and_bench.ipynb) would find that.

# %%
COLOURS = ("#0072b2", "#d55e00")  # told apart with every kind of colour vision
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), dpi=80, layout="constrained", facecolor="w")
for (name, (_, history, _)), colour, marker in zip(runs.items(), COLOURS, "os", strict=True):
    epochs = range(1, EPOCHS + 1)
    style = {"color": colour, "marker": marker, "markersize": 4}
    panels[0].plot(epochs, history["loss"], label=f"{name}, training", **style)
    panels[0].plot(
        epochs, history["val_loss"], "--", label=f"{name}, test", markerfacecolor="none", **style
    )
    panels[1].plot(epochs, [100 * a for a in history["val_accuracy"]], label=name, **style)
panels[0].set(xlabel="epoch", ylabel="loss (cross entropy, nats)", yscale="log")
panels[1].set(xlabel="epoch", ylabel="test accuracy (%)")
for axes in panels:
    axes.grid(color="#d0d7de", linewidth=0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Memory
#
# `memory.estimate` says what a step needs, without the framework. Nothing is trained for it.

# %%
estimates = {
    name: hpf.memory.estimate(trained, batch_size=BATCH_SIZE)
    for name, (trained, _, _) in runs.items()
}
for name, estimate in estimates.items():
    print(f"{name}\n{estimate}\n")

# %%
labels = {"parameters": "parameters", "slots": "optimizer", "kept": "kept for the backward pass"}
shades = ("#0072b2", "#56b4e9", "#e69f00")
figure, axes = plt.subplots(figsize=(8, 2.2), dpi=80, layout="constrained", facecolor="w")
left = [0.0] * len(estimates)
for (term, label), colour in zip(labels.items(), shades, strict=True):
    sizes = [(getattr(each, term) or 0) / 2**20 for each in estimates.values()]
    axes.barh(list(estimates), sizes, left=left, label=label, color=colour)
    left = [a + b for a, b in zip(left, sizes, strict=True)]
axes.set_xlabel(f"memory of a step of {BATCH_SIZE} images (MiB)")
axes.invert_yaxis()
axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Where to go
#
# - One layer needs another precision: [per_layer_precision](per_layer_precision.ipynb).
# - The fastest safe configuration for your model: [tune_and_bench](tune_and_bench.ipynb).
# - Less memory still: [memory](memory.ipynb).
