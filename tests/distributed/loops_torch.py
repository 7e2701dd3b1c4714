"""A small training that any number of ranks does alike."""

import contextlib
import math

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deepseek_hpf.torch import HybridPrecisionContext

ROWS = 8  # of a joined batch: divisible by 1, 2 and 4 ranks
STEPS = 12
LEARNING_RATE = 0.05
# "overflow" is one of float16 only, once the loss is scaled; float32 and bfloat16 hold it.
FAULTS = ("nan", "inf", "overflow")


def create_model(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))


def batches(seed, rank=0, size=1, steps=STEPS):
    """The rows of one rank of joined batches; all numbers are within [-1, 1]."""
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(steps):
        joined = torch.rand(ROWS, 9, generator=generator) * 2 - 1
        own = joined[rank::size]
        yield own[:, :6].clone(), own[:, 6:].clone()


def sharded(model, mesh=None):
    from torch.distributed.fsdp import fully_shard

    arguments = {} if mesh is None else {"mesh": mesh}
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **arguments)
    return fully_shard(model, **arguments)


def whole(tensor):
    """The tensor as numbers, gathered from its shards."""
    tensor = tensor.detach()
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.flatten().tolist()


def weights_of(model):
    module = model.module if isinstance(model, DistributedDataParallel) else model
    return [number for parameter in module.parameters() for number in whole(parameter)]


class Training:
    """A model, its optimizer and its context, with a record of each step."""

    def __init__(self, model, mode="fp32", config=None, around=contextlib.nullcontext):
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
        self.context = HybridPrecisionContext(mode, config, device="cpu")
        self.around = around
        self.record = {"weights": [weights_of(model)], "scale": [self.context.scale], "norm": []}

    def step(self, inputs, targets, fault=None):
        self.optimizer.zero_grad()
        with self.around():
            if fault == "nan":
                inputs = torch.full_like(inputs, math.nan)
            loss = nn.functional.mse_loss(self.model(inputs).float(), targets)
            loss = loss * {"overflow": 1e8, "inf": math.inf}.get(fault, 1.0)
            loss.backward()
        self.optimizer.step()
        self.record["weights"].append(weights_of(self.model))
        self.record["scale"].append(self.context.scale)
        self.record["norm"].append(self.context.gradient_norm)

    def result(self):
        context = self.context
        return {
            **self.record,
            "skipped": context.skipped_steps,
            "clipped": context.clipped_steps,
        }
