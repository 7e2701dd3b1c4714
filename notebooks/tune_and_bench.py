# %% [markdown]
# # Tune, then bench
#
# **Author:** The deepseek_hpf authors<br>
# **Date created:** 2026/12/01<br>
# **Last modified:** 2026/12/01<br>
# **Description:** Let the tuner measure two models and choose, see time against error, and compare the choice with its peers.<br>
# **Accelerator:** GPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/deepseek-hpf/deepseek_hpf/blob/main/notebooks/tune_and_bench.ipynb)

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

from pathlib import Path

import keras
import numpy as np
from IPython.display import Image, display

import deepseek_hpf as hpf

# %% [markdown]
# One switch: `FULL = False` runs on a CPU in about a minute. `FULL = True` is for a GPU, or for more
# patience. The images are scikit-learn's handwritten digits, enlarged: a step takes the same time
# whatever is on them. With `FULL` they are CIFAR-10's.

# %%
FULL = False
DATASET = "cifar10" if FULL else "digits"
WIDTH, UNITS, BATCH_SIZE, SECONDS, ROUNDS = (64, 4096, 128, 60, 20) if FULL else (8, 512, 64, 7, 4)

# %%
if DATASET == "digits":
    x, y = hpf.data.digits("train", size=16)
else:
    x, y = hpf.data.images(DATASET, "train")
batch = x[:BATCH_SIZE], y[:BATCH_SIZE]
np.savez("batch.npz", x=batch[0], y=batch[1])

# %% [markdown]
# ## Two models
#
# They go into a module of their own, `my_models.py`, for the benchmark runs in other processes.

# %%
source = f"""
import keras
from keras import layers


def compiled(inputs, x, name):
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x), name=name)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def convnet():
    x = inputs = keras.Input({tuple(x.shape[1:])})
    for width in ({WIDTH}, {2 * WIDTH}):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D()(layers.ReLU()(x))
    return compiled(inputs, layers.GlobalAveragePooling2D()(x), "convnet")


def mlp():
    inputs = keras.Input({tuple(x.shape[1:])})
    x = layers.Flatten()(inputs)
    for _ in range(2):
        x = layers.Dense({UNITS}, activation="gelu")(x)
    return compiled(inputs, x, "mlp")
"""
Path("my_models.py").write_text(source)
sys.path.insert(0, ".")
import my_models

# %% [markdown]
# ## Tune
#
# `hpf.tune` times whole training steps under one configuration after the other. The fastest whose loss
# stays within the error budget wins. The model is left as it was.

# %%
results = {}
for create in (my_models.convnet, my_models.mlp):
    keras.utils.set_random_seed(0)
    results[create.__name__] = hpf.tune(create(), batch, time_budget=SECONDS, progress=False)
    print(results[create.__name__])
    print()

# %% [markdown]
# Whether 16 bits pay depends on the model, the hardware and the library together. On a CPU without
# instructions for bfloat16 the answer is often float32 with fused kernels, or plain float32. The line
# "best" says what it is here, and the lines below it what was not tried, and why.
#
# ## Time against error
#
# The line joins the candidates that no other beats in both; the star is the choice.

# %%
for name, result in results.items():
    result.plot(f"{name}.png")
    display(Image(f"{name}.png", width=640))

# %% [markdown]
# ## Use it
#
# The configuration is a file like any other. `"auto"` finds it by itself on this machine, for models of
# the same structure.

# %%
results["convnet"].to_json("precision.json")
print(Path("precision.json").read_text())
model = my_models.convnet()
report = hpf.apply_policy(model, hpf.MixedPrecisionPolicy(config=results["convnet"].config))
history = model.fit(*batch, batch_size=16, epochs=2, verbose=2)

# %% [markdown]
# ## Bench
#
# `hpf bench` times float32, Keras's mixed policies, TensorFlow's graph rewrite and the tuned
# configuration, each on a model of its own, in turns. It runs in a process of its own, here on both
# models.


# %%
def shell(*words):
    print("$", *words)
    # Jupyter asks all programs for colours, and so for a bar that moves; here it is kept as text.
    environment = {**os.environ, "COLUMNS": "130"}
    environment.pop("FORCE_COLOR", None)
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    print(done.stdout if done.returncode == 0 else done.stderr)


options = ["--batch-size", str(BATCH_SIZE), "--rounds", str(ROUNDS), "--time-budget", str(SECONDS)]
for name in results:
    measured = ["--data", "batch.npz", "--results", "bench.jsonl", *options]
    shell("hpf", "bench", f"my_models:{name}", *measured)

# %% [markdown]
# The results are kept in a file, of which the chart is drawn:

# %%
shell("hpf", "bench", "--from", "bench.jsonl", "--plot", "bench.png")
display(Image("bench.png", width=640))

# %% [markdown]
# Bars above 1 are faster than float32. A contender that is far slower than float32 is timed by its first
# steps only. Ten models, on machines that have bfloat16, are in `BENCHMARKS.md`.
