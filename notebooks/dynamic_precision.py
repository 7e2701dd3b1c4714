# %% [markdown]
# # Precision that follows the training
#
# **Author:** The deepseek_hpf authors<br>
# **Date created:** 2026/12/01<br>
# **Last modified:** 2026/12/01<br>
# **Description:** A training run with a planted instability: Keras's mixed_float16 is lost, dynamic precision finds the layer, moves it to float32, and back.<br>
# **Accelerator:** GPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/deepseek-hpf/deepseek_hpf/blob/main/notebooks/dynamic_precision.ipynb)

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

# TensorFlow's oneDNN kernels emulate float16 on most CPUs, far slower than Eigen's do.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import logging
import math
import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

import deepseek_hpf as hpf
from deepseek_hpf.dynamic.event_file import read_events
from deepseek_hpf.dynamic.timeline import timeline_of
from deepseek_hpf.dynamic.timeline_plot import draw_timeline

# When layers change their precision, TensorFlow traces anew: that is meant, and no fault.
logging.getLogger("tensorflow").setLevel(logging.ERROR)
# A skipped step warns once. Here steps are meant to be skipped, and are counted below.
warnings.filterwarnings("ignore", "Model .*: a training step was skipped", RuntimeWarning)

# %% [markdown]
# One switch: `FULL = False` runs offline on a CPU, with scikit-learn's handwritten digits. `FULL = True` is
# for a GPU, and downloads CIFAR-10 through TFDS.

# %%
FULL = False
DATASET = "cifar10" if FULL else "digits"
BLOCKS, WIDTH, BATCH_SIZE, EPOCHS = (20, 256, 128, 8) if FULL else (8, 64, 32, 6)
FIRST, END, FACTOR = 30, 90, 3000.0  # the steps of the instability, and its size


# %% [markdown]
# ## A network that can blow up
#
# It is residual and not normalized between its blocks, so that what one block adds travels through
# all that follow. The normalization at the end hides it from the loss.


# %%
def load():
    options = {"batch_size": BATCH_SIZE, "seed": 0}
    if DATASET == "digits":
        return hpf.data.digits(**options)
    return hpf.data.images(DATASET, **options)


def dense(name, activation=None):
    return keras.layers.Dense(WIDTH, activation, kernel_initializer="he_normal", name=name)


def create_model(image_shape, steps):
    inputs = keras.Input(image_shape)
    x = keras.layers.Flatten(name="flatten")(inputs)
    x = dense("stem")(x)
    for number in range(BLOCKS):
        hidden = dense(f"block{number}_hidden", activation="relu")(x)
        x = keras.layers.Add(name=f"block{number}_add")([x, dense(f"block{number}_out")(hidden)])
    x = keras.layers.LayerNormalization(name="norm")(x)
    model = keras.Model(inputs, keras.layers.Dense(10, dtype="float32", name="logits")(x))
    model.name = "residual"
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


# %% [markdown]
# ## The planted instability
#
# For some steps the weights of one layer are thousands of times too large: its results go beyond
# 65,504, the largest number of float16, and float32 holds them with ease. Then they go back.


# %%
class Instability(keras.callbacks.Callback):
    """Multiplies one layer's weights between two steps, counted over the whole run."""

    def __init__(self, layer="block4_out"):
        super().__init__()
        self.layer, self.step = layer, 0

    def on_train_batch_begin(self, batch, logs=None):
        factors = {FIRST: FACTOR, END: 1 / FACTOR}
        if self.step in factors:
            kernel = self.model.get_layer(self.layer).kernel
            kernel.assign(keras.ops.multiply(kernel, factors[self.step]))
        self.step += 1


class Losses(keras.callbacks.Callback):
    """The mean loss since the last look, every ten steps."""

    def __init__(self):
        super().__init__()
        self.steps, self.values, self._sum, self._step = [], [], 0.0, 0

    def on_epoch_begin(self, epoch, logs=None):
        self._batches, self._last = 0, 0.0

    def on_train_batch_end(self, batch, logs=None):
        # Keras tells the mean since the epoch began; the difference of sums is this step's loss.
        total = logs["loss"] * (batch + 1)
        self._sum += total - self._last
        self._last, self._step = total, self._step + 1
        if self._step % 10 == 0:
            self.steps.append(self._step)
            self.values.append(self._sum / 10)
            self._sum = 0.0


# %% [markdown]
# ## Three runs
#
# From the same weights, on the same batches. `DynamicPrecision` is the only callback that the third
# needs; it does what `PrecisionOverrides` does, too. A layer that was promoted may go back after
# `calm_steps` quiet steps; the defaults are meant for longer runs than this one.


# %%
def train(policy, callbacks):
    keras.utils.set_random_seed(0)
    batches, test = load()
    keras.utils.set_random_seed(0)
    with hpf.MixedPrecisionPolicy(policy).scope():
        model = create_model(batches.element_spec[0].shape[1:], EPOCHS * len(batches))
    losses = Losses()
    fitted = model.fit(
        batches,
        validation_data=test,
        epochs=EPOCHS,
        shuffle=False,  # the batches come shuffled
        verbose=0,
        callbacks=[*callbacks, Instability(), losses],
    )
    steps = EPOCHS * len(batches)
    return {
        "loss": fitted.history["val_loss"][-1],
        "accuracy": fitted.history["val_accuracy"][-1],
        "scale": float(getattr(model.optimizer, "dynamic_scale", math.nan)),
        "skipped": steps - int(model.optimizer.iterations),
        "losses": losses,
        "history": fitted.history,
    }


config = hpf.PrecisionConfig.from_dict(
    {
        "policy": "mixed_float16",
        "dynamic": {"controller": "threshold", "every": 10, "sample_every": 5, "calm_steps": 60},
    }
)
dynamic = hpf.callbacks.DynamicPrecision(config, events="events.jsonl")
runs = {
    "Keras float32": train("float32", []),
    "Keras mixed_float16": train("mixed_float16", []),
    "DynamicPrecision": train("mixed_float16", [dynamic]),
}
print(f"{'':22}{'test loss':>10}{'accuracy':>10}{'loss scale':>12}{'skipped':>9}")
for name, run in runs.items():
    scale = "none" if math.isnan(run["scale"]) else f"{run['scale']:g}"
    print(f"{name:22}{run['loss']:10.4f}{run['accuracy']:10.1%}{scale:>12}{run['skipped']:9}")

# %%
COLOURS = ("#0072b2", "#999999", "#d55e00")  # told apart with every kind of colour vision
styles = zip(COLOURS, ("-", ":", "--"), "os^", strict=True)
figure, axes = plt.subplots(figsize=(8, 3.4), dpi=80, layout="constrained", facecolor="w")
for (name, run), (colour, line, marker) in zip(runs.items(), styles, strict=True):
    losses = run["losses"]
    style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
    axes.plot(losses.steps, losses.values, label=name, **style)
axes.axvspan(FIRST, END, color="#f0e442", alpha=0.5, label="planted instability")
axes.set(xlabel="step", ylabel="training loss (nats)", yscale="log")
axes.grid(color="#d0d7de", linewidth=0.6)
axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Keras's loss scaling takes each overflow for one of the gradients and halves the loss scale, which does
# not help an activation: all steps of the instability are lost. When the weights are back, the scale
# that is left (see the table) is so small that gradients vanish in float16, and it grows slowly.
#
# ## What was decided, and why

# %%
recorded = read_events("events.jsonl")
events = [
    event for epoch in runs["DynamicPrecision"]["history"]["precision_events"] for event in epoch
]
for event in events:
    block = f" {event['block']}" if event.get("block") else ""
    print(f"step {event['step']:3}: {event['kind']}{block}: {event['reason']}")

# %% [markdown]
# ## Heat map of the switches
#
# Each row is a block of layers, each column a step.

# %%
levels = {
    "base": ("mixed_float16", "#eab25a"),
    "critical": ("critical layers in float32", "#56b4e9"),
}
levels["float32"] = ("float32", "#005a8f")
heat = np.zeros((len(recorded.blocks), recorded.end))
for row, block in enumerate(recorded.blocks):
    for span in recorded.spans(block):
        heat[row, span.first : span.end] = list(levels).index(span.level)
size = (9, 1.2 + 0.3 * len(heat))
figure, axes = plt.subplots(figsize=size, dpi=80, layout="constrained", facecolor="w")
colours = [colour for _, colour in levels.values()]
axes.imshow(heat, ListedColormap(colours), aspect="auto", interpolation="nearest", vmin=0, vmax=2)
axes.set_yticks(range(len(heat)), recorded.blocks, fontsize=8)
axes.set_yticks(np.arange(len(heat)) - 0.5, minor=True)
axes.grid(axis="y", which="minor", color="w", linewidth=1.5)
axes.tick_params(which="minor", length=0)
axes.set_xlabel("step")
seen = {int(level) for level in np.unique(heat)}
patches = [Patch(color=c, label=n) for i, (n, c) in enumerate(levels.values()) if i in seen]
axes.legend(handles=patches, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## The timeline
#
# The same file in one picture. In the shell: `hpf events events.jsonl -o timeline.html`, a page that
# tells more where the pointer is.

# %%
display(Image(draw_timeline(timeline_of(recorded)), width=800))
