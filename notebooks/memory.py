# %% [markdown]
# # Less memory for a training step
#
# **Author:** The deepseek_hpf authors<br>
# **Date created:** 2026/12/01<br>
# **Last modified:** 2026/12/01<br>
# **Description:** Estimate what a training step needs, keep less for its backward pass, and find the batch size that fits.<br>
# **Accelerator:** GPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/deepseek-hpf/deepseek_hpf/blob/main/notebooks/memory.ipynb)

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
# Other processes are started below, and need a part of the GPU's memory, too.
os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"

import logging

import keras
import matplotlib.pyplot as plt

import deepseek_hpf as hpf

# Each storage that is measured is a graph of its own: TensorFlow need not warn of it.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

# %% [markdown]
# One switch: `FULL = False` runs offline on a CPU, with scikit-learn's handwritten digits, enlarged.
# `FULL = True` is for a GPU, and downloads CIFAR-10 through TFDS.

# %%
FULL = False
DATASET = "cifar10" if FULL else "digits"
WIDTH, BATCH_SIZE, EPOCHS = (64, 256, 10) if FULL else (16, 64, 6)

# %%
if DATASET == "digits":
    (x, y), test = hpf.data.digits(size=16)
else:
    (x, y), test = hpf.data.images(DATASET)


def create_model():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    h = inputs = keras.Input(x.shape[1:])
    for number in range(3):
        h = layers.Conv2D(WIDTH * 2**number, 3, padding="same", name=f"conv{number}")(h)
        h = layers.Activation("gelu", name=f"gelu{number}")(h)
        h = layers.AveragePooling2D(2, name=f"pool{number}")(h)
    h = layers.Flatten(name="flatten")(h)
    h = layers.Dense(128, activation="gelu", name="hidden")(h)
    model = keras.Model(inputs, layers.Dense(10, name="logits")(h), name="convnet")
    model.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


# %% [markdown]
# ## What does a step need?
#
# Weights, the optimizer's slots, gradients, and what the forward pass keeps for the backward pass.
# Nothing is trained to find out.

# %%
model = create_model()
print(hpf.memory.estimate(model, BATCH_SIZE))

# %% [markdown]
# ## It grows with the batch
#
# Weights and slots stay; what is kept does not. In bfloat16 most of it takes half the bytes.

# %%
sizes = [16 * 2**power for power in range(5)]
series = {
    "float32": [hpf.memory.estimate(model, size) for size in sizes],
    "mixed_bfloat16": [hpf.memory.estimate(model, size, "mixed_bfloat16") for size in sizes],
}

# %% [markdown]
# ## Keep less
#
# `compress_activations` has layers keep 8 bits a value, rounded at random, so that gradients of linear
# layers stay right on average. What the forward pass computes is the same.

# %%
compressed = create_model()
report = hpf.memory.compress_activations(compressed, "int8")
print(report)
series["float32, int8 kept"] = [hpf.memory.estimate(compressed, size) for size in sizes]
plain = hpf.memory.estimate(model, BATCH_SIZE)
packed = hpf.memory.estimate(compressed, BATCH_SIZE)
reduction = 1 - packed.kept / plain.kept
print(f"kept for the backward pass: {plain.kept:,} bytes plain, {packed.kept:,} with int8")
print(
    f"{reduction:.0%} less; the peak of the step is estimated {1 - packed.total / plain.total:.0%} lower"
)

# %%
COLOURS = ("#0072b2", "#e69f00", "#009e73")  # told apart with every kind of colour vision
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), dpi=80, layout="constrained", facecolor="w")
for (name, estimates), colour, marker in zip(series.items(), COLOURS, "os^", strict=True):
    style = {"color": colour, "marker": marker, "markersize": 5, "label": name}
    panels[0].plot(sizes, [each.kept / 2**20 for each in estimates], **style)
    panels[1].plot(sizes, [each.total / 2**20 for each in estimates], **style)
panels[0].set_ylabel("kept for the backward pass (MiB)")
panels[1].set_ylabel("peak of a step (MiB)")
for axes in panels:
    axes.set_xlabel("batch size (rows)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color="#d0d7de", linewidth=0.6)
panels[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# Fewer bytes kept is not the same as a lower peak: packing needs room of its own, and these figures do
# not count what a kernel needs inside.
#
# ## It still learns
#
# Both start from the same weights and see the same batches.

# %%
accuracies = {}
for name, trained in {"plain": model, "int8 kept": compressed}.items():
    keras.utils.set_random_seed(0)
    trained.fit(x, y, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
    accuracies[name] = trained.evaluate(*test, verbose=0)[1]
    print(f"{name:10} test accuracy {accuracies[name]:.1%}")
report.revert()

# %% [markdown]
# ## Or name a goal
#
# With `memory_goal` each layer gets a storage of its own, by what was measured of it: what all keep is
# within the goal, and the gradient moves least.

# %%
goal_model = create_model()
goal = hpf.memory.compress_activations(
    goal_model, memory_goal=0.5, batch=(x[:BATCH_SIZE], y[:BATCH_SIZE])
)
print(goal)
print(f"{goal.bytes_after / goal.bytes_before:.0%} of the bytes are kept")

# %% [markdown]
# ## How large can the batch be?
#
# `find_batch_size` trains batches of growing size in a process of its own, which is ended when it
# holds more than it may. Here a step may take 64 MiB; by default it is nine tenths of the free memory.

# %%
LIMIT = 0.9 if FULL else 64 * 2**20
found = hpf.memory.find_batch_size(
    create_model(), (x, y), memory=LIMIT, policies=["float32"], ceiling=512, multiple_of=128
)
print(found)

# %% [markdown]
# ## Let the batch grow
#
# Small batches learn much per image at the start, large ones are steadier at the end.

# %%
batches = hpf.memory.ResizableBatches(x, y, batch_size=32)
grow = hpf.callbacks.BatchSizeScheduler(batches, every=1, ceiling=128, learning_rate="linear")
growing = create_model()
history = growing.fit(batches, epochs=3, verbose=0, callbacks=[grow]).history
print("batch size of each epoch:", history["batch_size"])
print("loss of each epoch:", [round(loss, 3) for loss in history["loss"]])
