# %% [markdown]
# # Mixed precision around a plain PyTorch loop
#
# **Author:** The deepseek_hpf authors<br>
# **Date created:** 2026/12/01<br>
# **Last modified:** 2026/12/01<br>
# **Description:** Leave a PyTorch training loop as it is: float32 against bfloat16 and float16, and a skipped step that harms nothing.<br>
# **Accelerator:** GPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/deepseek-hpf/deepseek_hpf/blob/main/notebooks/pytorch_context.ipynb)

# %% [markdown]
# ## Setup
#
# On Colab this installs the package; where it is installed, nothing happens.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("deepseek_hpf") is None:
    source = (
        "deepseek_hpf[datasets,report,torch] @ git+https://github.com/deepseek-hpf/deepseek_hpf"
    )
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)

import math
import time

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from deepseek_hpf.torch import HybridPrecisionContext

# %% [markdown]
# One switch: `FULL = False` runs on a CPU in seconds, with scikit-learn's handwritten digits. `FULL = True`
# is for a GPU, and downloads CIFAR-10.

# %%
FULL = False
DATASET = "cifar10" if FULL else "digits"
WIDTH, BATCH_SIZE, EPOCHS = (64, 128, 15) if FULL else (16, 32, 6)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# %% [markdown]
# ## Data, model and loop
#
# All of it is plain PyTorch, and there is no precision in it: no `autocast`, no `GradScaler`.


# %%
def load():
    if DATASET == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images, labels = images.reshape(-1, 1, 8, 8) / 16, labels
    else:
        import numpy as np

        import deepseek_hpf as hpf

        parts = hpf.data.images(DATASET)
        images = np.concatenate([part[0] for part in parts]).transpose(0, 3, 1, 2)
        labels = np.concatenate([part[1] for part in parts])
    images = torch.tensor(images, dtype=torch.float32, device=DEVICE)
    labels = torch.tensor(labels, device=DEVICE)
    for_test = torch.arange(len(labels), device=DEVICE) % 5 == 0
    return TensorDataset(images[~for_test], labels[~for_test]), (images[for_test], labels[for_test])


def create_model(channels):
    torch.manual_seed(0)
    layers = []
    for width in (WIDTH, 2 * WIDTH):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10)
    )


def train(model, loader, optimizer, criterion):
    losses = []
    for _ in range(EPOCHS):
        total = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(loader))
    return losses


def accuracy(model, images, labels):
    model.eval()
    with torch.no_grad():
        found = model(images).argmax(1)
    model.train()
    return (found == labels).float().mean().item()


# %% [markdown]
# ## Float32, bfloat16, float16
#
# Precision is the `with` around the loop. In `"fp16"` it also scales the loss, so that small gradients
# survive; `.grad` holds true gradients all the same.

# %%
print("auto would choose:", HybridPrecisionContext("auto").reason)

# %%
dataset, (test_images, test_labels) = load()
runs = {}
for mode in ("fp32", "bf16", "fp16"):
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, generator=order)
    model = create_model(test_images.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    context = HybridPrecisionContext(mode)
    began = time.perf_counter()
    with context:
        losses = train(model, loader, optimizer, nn.CrossEntropyLoss())
        found = accuracy(model, test_images, test_labels)
    runs[mode] = {"losses": losses, "accuracy": found, "seconds": time.perf_counter() - began}
    runs[mode] |= {"skipped": context.skipped_steps, "scale": context.scale}
print(f"{'mode':6}{'test accuracy':>15}{'seconds':>9}{'skipped':>9}{'loss scale':>12}")
for mode, run in runs.items():
    scale = f"{run['scale']:g}" if mode == "fp16" else "none"
    print(f"{mode:6}{run['accuracy']:15.1%}{run['seconds']:9.1f}{run['skipped']:9}{scale:>12}")

# %% [markdown]
# On a CPU a network as small as this gains nothing from 16 bits, and without instructions for them it
# loses: the seconds above tell. What is to be seen here is that the accuracy stays. On a GPU run the
# full setting.

# %%
COLOURS = {"fp32": "#0072b2", "bf16": "#e69f00", "fp16": "#009e73"}  # for every colour vision
figure, axes = plt.subplots(figsize=(7, 3.4), dpi=80, layout="constrained", facecolor="w")
for (mode, run), line, marker in zip(runs.items(), ("-", "--", ":"), "os^", strict=True):
    style = {"color": COLOURS[mode], "linestyle": line, "marker": marker, "label": mode}
    axes.plot(range(1, EPOCHS + 1), run["losses"], **style)
axes.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
axes.xaxis.get_major_locator().set_params(integer=True)
axes.grid(color="#d0d7de", linewidth=0.6)
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## A step that goes wrong
#
# One image is broken: it holds an infinity. Without protection its gradients are NaN, and so is every
# weight from then on. In the context that step is skipped: no weight and no state of the optimizer
# changes, and the running statistics of batch normalization are set back.


# %%
def some_steps(model, optimizer, broken_step):
    criterion = nn.CrossEntropyLoss()
    for step in range(6):
        rows = slice(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        inputs, labels = dataset.tensors[0][rows].clone(), dataset.tensors[1][rows]
        if step == broken_step:
            inputs[0, 0, 0, 0] = math.inf
        optimizer.zero_grad()
        criterion(model(inputs), labels).backward()
        optimizer.step()


def finite_share(model):
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    finite = sum(int(tensor.isfinite().sum()) for tensor in tensors)
    return finite / sum(tensor.numel() for tensor in tensors)


bare = create_model(test_images.shape[1])
some_steps(bare, torch.optim.AdamW(bare.parameters(), lr=3e-3), broken_step=3)
guarded = create_model(test_images.shape[1])
optimizer = torch.optim.AdamW(guarded.parameters(), lr=3e-3)
with HybridPrecisionContext("bf16") as context:
    some_steps(guarded, optimizer, broken_step=3)
print(f"without the context: {finite_share(bare):.0%} of the state is finite")
print(f"with it: {finite_share(guarded):.0%}, skipped steps {context.skipped_steps}")

# %% [markdown]
# ## Rules, clipping, checkpoints
#
# The configuration is the same JSON as for Keras. Paths are those of the modules.

# %%
config = {
    "rules": [{"layer_type": "Linear", "policy": "float32"}],
    "clipping": {"kind": "global_norm", "max_norm": 1.0},
}
with HybridPrecisionContext("bf16", config) as context:
    logits = guarded(test_images[:4])
    nn.functional.cross_entropy(logits, test_labels[:4]).backward()
print("the Linear layer returns", logits.dtype)
saved = {"model": guarded.state_dict(), "precision": context.state_dict()}
resumed = HybridPrecisionContext("bf16", config)
resumed.load_state_dict(saved["precision"])
print("resumed, skipped steps so far:", resumed.skipped_steps)

# %% [markdown]
# ## What each module computes in
#
# `hpf.profile` takes a plain module, too. It looks at one training step, under a copy of the context,
# and changes nothing.

# %%
import deepseek_hpf as hpf

batch = test_images[:BATCH_SIZE], test_labels[:BATCH_SIZE]
report = hpf.profile(
    guarded,
    batch,
    criterion=nn.functional.cross_entropy,
    context=HybridPrecisionContext("bf16", config),
)
print(f"{'module':8}{'class':20}{'computes in':13}largest output")
for row in report.layers:
    for output in report.ranges_of(row.path):
        print(f"{row.path:8}{row.class_name:20}{row.compute_dtype:13}{output.largest:14.3g}")
print(f"conflicts: {len(report.conflicts)}")
for conflict in report.conflicts:
    print(f"[{conflict.severity}] {conflict.path}: {conflict.message}")
