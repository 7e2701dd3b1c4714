# %% [markdown]
# # Precision, layer by layer
#
# **Author:** The deepseek_hpf authors<br>
# **Date created:** 2026/12/01<br>
# **Last modified:** 2026/12/01<br>
# **Description:** Write rules for single layers in JSON, read the report, let the profiler find a conflict, and fix it by the rule it prints.<br>
# **Accelerator:** GPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/deepseek-hpf/deepseek_hpf/blob/main/notebooks/per_layer_precision.ipynb)

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

import json
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt

import deepseek_hpf as hpf

# %% [markdown]
# One switch: `FULL = False` runs offline on a CPU, with scikit-learn's handwritten digits. `FULL = True` is
# for a GPU, and downloads CIFAR-10 through TFDS.

# %%
FULL = False
DATASET = "cifar10" if FULL else "digits"
WIDTH, BATCH_SIZE, EPOCHS = (64, 128, 15) if FULL else (16, 32, 6)

# %%
keras.utils.set_random_seed(0)
if DATASET == "digits":
    (x, y), test = hpf.data.digits()
else:
    (x, y), test = hpf.data.images(DATASET)
print(f"{len(x)} images of {x.shape[1:]} to train with, {len(test[0])} to test with")


# %% [markdown]
# ## A model with named layers
#
# Rules select layers by their path or by their class, so names help.


# %%
def create_model():
    layers = keras.layers
    inputs = keras.Input(x.shape[1:])
    h = layers.Conv2D(WIDTH, 3, padding="same", activation="relu", name="stem")(inputs)
    for number in (1, 2):
        shape = {"padding": "same", "use_bias": False}
        h = layers.Conv2D(WIDTH * 2**number, 3, **shape, name=f"block{number}_conv")(h)
        h = layers.BatchNormalization(momentum=0.9, name=f"block{number}_norm")(h)
        h = layers.ReLU(name=f"block{number}_relu")(h)
        h = layers.MaxPooling2D(name=f"block{number}_pool")(h)
    h = layers.Flatten(name="flatten")(h)
    h = layers.Dense(4 * WIDTH, activation="relu", name="hidden")(h)
    outputs = layers.Dense(10, activation="softmax", name="head")(h)
    model = keras.Model(inputs, outputs, name="classifier")
    adam = keras.optimizers.Adam(3e-3)
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


# %% [markdown]
# ## The file
#
# The stem sees the raw image and stays in float32. Then somebody wants all Dense layers in bfloat16,
# and writes a rule for the class. That rule is broader than it looks.

# %%
rules = [
    {"layers": "stem", "policy": "float32"},
    {"layer_type": "Dense", "policy": "mixed_bfloat16"},
]
folder = Path(tempfile.mkdtemp())
(folder / "precision.json").write_text(
    json.dumps({"policy": "mixed_bfloat16", "rules": rules}, indent=2)
)
print((folder / "precision.json").read_text())

# %% [markdown]
# ## The report
#
# `apply_policy` (or the callback `PrecisionOverrides`) gives each layer its precision, and returns what
# it did and why.

# %%
keras.utils.set_random_seed(0)
model = create_model()
policy = hpf.MixedPrecisionPolicy.from_json(folder / "precision.json")
report = hpf.apply_policy(model, policy)
print(report)

# %% [markdown]
# A slip in a file is refused, with the nearest key that there is:

# %%
try:
    hpf.PrecisionConfig.from_dict({"rules": [{"layer": "stem", "policy": "float32"}]})
except hpf.ConfigError as error:
    print(error)

# %% [markdown]
# ## The profiler
#
# `hpf.profile` looks at a training step and changes nothing.

# %%
batch = x[:BATCH_SIZE], y[:BATCH_SIZE]
before = hpf.profile(model, batch)
for conflict in before.conflicts:
    print(f"[{conflict.severity}] {conflict.kind} at {conflict.path}: {conflict.message}")
    for rule in conflict.rules:
        print("    rule to add:", json.dumps(rule))

# %% [markdown]
# The head computes the model's output, a softmax, in bfloat16, which has 8 bits of precision. Without
# the rule for all Dense layers it would have been kept in float32 by itself; a rule is obeyed.
#
# ## Fixed by the rule it prints
#
# Of several rules that hit a layer the last one wins, so what the profiler prints goes to the end.

# %%
errors = [conflict for conflict in before.conflicts if conflict.severity == "error"]
additional = []
for conflict in errors:
    additional += [dict(rule) for rule in conflict.rules if dict(rule) not in additional]
fixed_rules = rules + additional
(folder / "fixed.json").write_text(
    json.dumps({"policy": "mixed_bfloat16", "rules": fixed_rules}, indent=2)
)
keras.utils.set_random_seed(0)
fixed = create_model()
fixed_report = hpf.apply_policy(fixed, hpf.MixedPrecisionPolicy.from_json(folder / "fixed.json"))
after = hpf.profile(fixed, batch)
print(f"rules added: {json.dumps(additional)}")
print(f"head: {report.row('head').after} before, {fixed_report.row('head').after} now")
errors_after = [conflict for conflict in after.conflicts if conflict.severity == "error"]
print(f"conflicts that put numbers at risk: {len(errors)} before, {len(errors_after)} now")

# %% [markdown]
# ## Ranges
#
# The report also holds the magnitudes of every layer's outputs and gradients. A format has to reach
# as high as the largest of them, and low enough for the small ones to matter.

# %%
FLOAT16_LARGEST, FLOAT16_SMALLEST = 65504, 6.1e-5
names = [layer.name for layer in fixed.layers if after.ranges_of(layer.name, "output_gradient")]
kinds = {"output": ("#0072b2", -0.18), "output_gradient": ("#d55e00", 0.18)}
figure, axes = plt.subplots(figsize=(8, 4), dpi=80, layout="constrained", facecolor="w")
for kind, (colour, offset) in kinds.items():
    for place, name in enumerate(names):
        row = after.ranges_of(name, kind)[0]
        if row.smallest is not None:
            axes.plot(
                [row.smallest, row.largest],
                [place + offset] * 2,
                color=colour,
                linewidth=6,
                solid_capstyle="butt",
                label=f"{kind.replace('_', ' ')}s" if place == 0 else None,
            )
axes.axvspan(
    FLOAT16_SMALLEST, FLOAT16_LARGEST, color="#999999", alpha=0.2, label="float16's normal numbers"
)
axes.set(xscale="log", xlabel="magnitude, smallest to largest other than 0 (no unit)")
axes.set_yticks(range(len(names)), names)
axes.invert_yaxis()
axes.grid(axis="x", color="#d0d7de", linewidth=0.6)
axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Train
#
# `fit` is as always: the model has its precision already.

# %%
fitted = fixed.fit(
    x, y, validation_data=test, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=2
).history
print(f"test accuracy {fitted['val_accuracy'][-1]:.1%}")

# %% [markdown]
# ## The same in the shell
#
# ```sh
# hpf check precision.json --model my_models:create_model
# hpf_profiler my_models:create_model --config precision.json --report report.html
# hpf_profiler my_models:create_model --config precision.json --fail-on conflicts   # for CI
# ```
