# %% [markdown]
# # A GPT from scratch
#
# **Author:** The deepseek_hpf authors<br>
# **Date created:** 2026/12/01<br>
# **Last modified:** 2026/12/01<br>
# **Description:** Train a character-level GPT on the source code of Python's standard library in mixed precision, and let it write.<br>
# **Accelerator:** GPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/deepseek-hpf/deepseek_hpf/blob/main/notebooks/gpt_from_scratch.ipynb)

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

import keras
import matplotlib.pyplot as plt
import numpy as np

import deepseek_hpf as hpf

# %% [markdown]
# One switch: `FULL = False` is a small model that trains on a CPU in half a minute; `FULL = True` is for
# a GPU. The text is on every machine, so that neither needs a network.

# %%
FULL = False
DATASET = "python_source"
if FULL:
    BLOCKS, WIDTH, LENGTH, BATCH_SIZE, CHARACTERS, EPOCHS = 6, 384, 256, 64, 4_000_000, 20
else:
    BLOCKS, WIDTH, LENGTH, BATCH_SIZE, CHARACTERS, EPOCHS = 2, 64, 64, 32, 200_000, 4
HEADS = 4
VOCABULARY = len(hpf.data.PYTHON_CHARACTERS)
POLICY = "auto" if FULL else "mixed_bfloat16"  # or another Keras policy

# %% [markdown]
# ## The text
#
# Each sequence is followed by the same one, a character later: what the model has to say.

# %%
keras.utils.set_random_seed(0)
train, validation = hpf.data.python_source(
    batch_size=BATCH_SIZE, length=LENGTH, size=CHARACTERS, seed=0
)
inputs, targets = next(iter(validation))
print("".join(hpf.data.PYTHON_CHARACTERS[index] for index in inputs[20].numpy()))
print(
    f"{len(train)} batches of {BATCH_SIZE} sequences of {LENGTH} characters, {VOCABULARY} characters"
)


# %% [markdown]
# ## The model
#
# Pre-norm blocks, causal attention, GELU, as GPT-2 has them.


# %%
@keras.saving.register_keras_serializable(package="notebook")
class Positions(keras.layers.Layer):
    """Adds a learned vector for each place of a sequence."""

    def build(self, input_shape):
        self.places = self.add_weight(shape=input_shape[1:], initializer="uniform", name="places")

    def call(self, x):
        return x + keras.ops.cast(self.places, x.dtype)


def create_model(steps):
    layers = keras.layers
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH, name="embedding")(inputs)
    x = Positions(name="positions")(x)
    for number in range(BLOCKS):
        h = layers.LayerNormalization(epsilon=1e-5, name=f"block{number}_norm1")(x)
        attention = layers.MultiHeadAttention(
            HEADS, WIDTH // HEADS, name=f"block{number}_attention"
        )
        x = layers.Add(name=f"block{number}_add1")([x, attention(h, h, use_causal_mask=True)])
        h = layers.LayerNormalization(epsilon=1e-5, name=f"block{number}_norm2")(x)
        h = layers.Dense(4 * WIDTH, activation="gelu", name=f"block{number}_wide")(h)
        h = layers.Dense(WIDTH, name=f"block{number}_narrow")(h)
        x = layers.Add(name=f"block{number}_add2")([x, h])
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(x)
    model = keras.Model(inputs, layers.Dense(VOCABULARY, name="logits")(x), name="gpt")
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return model


# %% [markdown]
# ## Train under the policy

# %%
policy = hpf.MixedPrecisionPolicy(POLICY)
print(f"trains in {policy.name}; auto would choose: {hpf.MixedPrecisionPolicy().reason}")
with policy.scope():
    model = create_model(EPOCHS * len(train))
print(f"{model.count_params():,} parameters")
overrides = hpf.callbacks.PrecisionOverrides(policy)
history = model.fit(
    train,
    validation_data=validation,
    epochs=EPOCHS,
    shuffle=False,  # the batches come shuffled
    verbose=2,
    callbacks=[overrides],
).history
print(f"skipped steps: {int(model.optimizer.skipped_steps)}")

# %% [markdown]
# The report says which layer computes in what. A layer that holds others, such as the attention, is
# followed by them.

# %%
print(overrides.report)

# %%
figure, axes = plt.subplots(figsize=(7, 3.4), dpi=80, layout="constrained", facecolor="w")
epochs = range(1, EPOCHS + 1)
axes.plot(epochs, history["loss"], "o-", color="#0072b2", label="training")
axes.plot(
    epochs, history["val_loss"], "s--", color="#d55e00", markerfacecolor="none", label="validation"
)
axes.axhline(
    np.log(VOCABULARY), color="#6e7781", linestyle=":", label="a guess among all characters"
)
axes.set(xlabel="epoch", ylabel="loss (nats a character)")
axes.xaxis.get_major_locator().set_params(integer=True)
axes.grid(color="#d0d7de", linewidth=0.6)
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Let it write
#
# One character after the other, each drawn from what the model says. After so little training it has
# learned the look of the text, and little of its sense.


# %%
def continued(text, count, temperature=0.7, seed=0):
    random = np.random.default_rng(seed)
    written = [hpf.data.PYTHON_CHARACTERS.index(character) for character in text]
    for _ in range(count):
        seen = written[-LENGTH:]
        # What stands behind a character does not change what the model says of it.
        window = np.pad(seen, (0, LENGTH - len(seen)))[None].astype("int32")
        logits = model.predict_on_batch(window)[0, len(seen) - 1].astype("float64")
        noise = random.gumbel(size=logits.shape)  # the largest is then a draw from the softmax
        written.append(int(np.argmax(logits / temperature + noise)))
    return "".join(hpf.data.PYTHON_CHARACTERS[index] for index in written)


text = continued("def ", 1000 if FULL else 250)
print(text)
