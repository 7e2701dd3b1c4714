r"""PyTorch on several processes: an overflow on any of them skips the step on all.

    torchrun --standalone --nproc-per-node 2 examples/distributed/pytorch.py --mode fp16

With `--engine fsdp` each process holds a part of the weights (`fully_shard`); with `--bfloat16`
DDP sends half the bytes. With `--checkpoint FOLDER` a run that was killed goes on, with the same
bits, when the same command is given again. The data are scikit-learn's handwritten digits.

On several machines, on each of them (the address is that of the first):

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
        examples/distributed/pytorch.py
"""

import argparse
import gc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from deepseek_hpf.distributed import coordinate, send_gradients_in_bfloat16
from deepseek_hpf.torch import HybridPrecisionContext

TIMEOUT = timedelta(seconds=60)  # after which a silent process ends the others
FOR_TEST = 5  # every fifth image


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--mode", default="auto", help="auto, bf16, fp16 or fp32")
    parser.add_argument("--config", metavar="FILE", help="a JSON configuration")
    parser.add_argument("--bfloat16", action="store_true", help="send gradients in bfloat16 (ddp)")
    parser.add_argument("--checkpoint", metavar="FOLDER", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    parser.add_argument("--seed", type=int, default=0, help="the same on all processes")
    return parser.parse_args(arguments)


def load() -> tuple[torch.Tensor, ...]:
    """Returns images and classes to train with, and others to test with."""
    images, classes = (torch.tensor(part) for part in load_digits(return_X_y=True))
    pixels = images.float().reshape(-1, 1, 8, 8) / 16
    test = torch.arange(len(classes)) % FOR_TEST == 0
    return pixels[~test], classes[~test], pixels[test], classes[test]


def batches(count: int, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Yields the images of this process, batch by batch: joined batches are the same always."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    for joined in order.split(size)[: count // size]:
        yield joined[dist.get_rank() :: dist.get_world_size()]


def create_model() -> nn.Module:
    """A small convolutional network without batch normalization, which would see parts."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def saved_at(folder: Path) -> Path:
    """The file of this process."""
    return folder / f"rank{dist.get_rank()}-of-{dist.get_world_size()}.pt"


def save(folder: Path, epoch: int, parts: dict[str, Any]) -> None:
    """Writes this process's part of a checkpoint, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = saved_at(folder)
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"epoch": epoch, "states": states}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    dist.barrier()  # No process begins the next epoch before all have saved this one.


def restore(folder: Path, parts: dict[str, Any]) -> int:
    """Goes on from a checkpoint; returns the epochs that are done."""
    saved: dict[str, Any] = {"epoch": 0, "states": {}}
    with suppress(FileNotFoundError):
        saved = torch.load(saved_at(folder))
    done = torch.tensor([saved["epoch"], -saved["epoch"]])
    dist.all_reduce(done, dist.ReduceOp.MIN)
    if done[0] != -done[1]:
        raise RuntimeError(f"The processes were killed between two epochs: {-int(done[1])} is new.")
    for name, state in saved["states"].items():
        parts[name].load_state_dict(state)
    return int(saved["epoch"])


def accuracy(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> float:
    """Returns the share of images that are recognized."""
    with torch.no_grad():
        return float((model(images).argmax(1) == classes).float().mean())


def train(given: argparse.Namespace) -> float:
    """Trains on this process; process 0 prints a line an epoch."""
    torch.manual_seed(given.seed)
    images, classes, *test = load()
    plain = create_model()
    model = DistributedDataParallel(plain) if given.engine == "ddp" else fully_shard(plain)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    context = HybridPrecisionContext(given.mode, given.config)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "context": context}
    if given.bfloat16:
        parts["messages"] = send_gradients_in_bfloat16(model, context)
    done = restore(given.checkpoint, parts) if given.checkpoint else 0
    with coordinate(context) as coordinated:
        for epoch in range(done, given.epochs):
            for own in batches(len(classes), given.batch_size, given.seed + epoch):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images[own]), classes[own])
                loss.backward()
                optimizer.step()
            right = accuracy(model, *test)
            if dist.get_rank() == 0:
                print(
                    f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy {right:.3f}, loss scale "
                    f"{context.scale:g}, skipped steps {context.skipped_steps}"
                )
            if given.checkpoint:
                save(given.checkpoint, epoch + 1, parts)
    if dist.get_rank() == 0:
        print(f"{coordinated.messages} messages of {coordinated.message_bytes} bytes for decisions")
        if given.bfloat16:
            sent = parts["messages"]
            print(
                f"gradients: {sent.bytes_per_step:,} bytes a step, in float32 "
                f"{sent.float32_bytes_per_step:,}; not delivered yet: norm {sent.kept_norm():.2e}"
            )
    return right


def main(arguments: Sequence[str] | None = None) -> float:
    """Joins the process group that `torchrun` describes, trains, and returns the accuracy."""
    given = parse(arguments)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        return train(given)
    finally:
        # DDP refers to itself, and so keeps the group and its threads: one that still runs while
        # Python ends aborts the process ("terminate called without an active exception").
        gc.collect()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
