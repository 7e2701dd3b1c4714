"""A training step of ResNet-50 in `HybridPrecisionContext` against PyTorch's own `torch.amp`.

Both do the same: autocast in the forward pass, backward outside of it, SGD with momentum; in
float16 also loss scaling. The context looks for gradients that are not finite in every mode, which
`torch.amp` does in float16 only. Both train copies of one model, in turns within each round, so
that what else the machine does hits both. A ratio above 1 means that the context costs time.

    python examples/benchmarks/pytorch_context.py --mode bf16 --rounds 10
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from deepseek_hpf.timing import Spread, time_in_turns
from deepseek_hpf.torch import HybridPrecisionContext

BLOCKS = (3, 4, 6, 3)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=16, help="images in a batch")
    parser.add_argument("--size", type=int, default=96, help="pixels on a side")
    parser.add_argument("--width", type=int, default=64, help="channels of the first block")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of timings")
    parser.add_argument("--clip", action="store_true", help="both clip the global norm to 1")
    parser.add_argument("--json", action="store_true", help="print one line of JSON only")
    return parser.parse_args()


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution and its batch normalization."""
    kernel = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(kernel, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """ResNet-50's block: 1x1, 3x3, 1x1, and a way around them."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            convolution(inputs, width, 1),
            nn.ReLU(),
            convolution(width, width, 3, stride),
            nn.ReLU(),
            convolution(width, 4 * width, 1),
        )
        straight = inputs == 4 * width and stride == 1
        self.shortcut = nn.Identity() if straight else convolution(inputs, 4 * width, 1, stride)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Adds both ways."""
        return torch.relu(self.branch(inputs) + self.shortcut(inputs))


def resnet_50(width: int = 64, classes: int = 100) -> nn.Module:
    """ResNet-50, or one of its shape with fewer channels."""
    layers: list[nn.Module] = [convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, count in enumerate(BLOCKS):
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(Bottleneck(inputs, width * 2**stage, stride))
            inputs = 4 * width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def with_amp(model: nn.Module, batch: Any, given: argparse.Namespace) -> Callable[[], None]:
    """A training step as PyTorch's documentation writes it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    scaler = torch.amp.GradScaler(given.device, enabled=given.mode == "fp16")

    def step() -> None:
        images, labels = batch
        optimizer.zero_grad()
        with torch.autocast(given.device, DTYPES[given.mode]):
            loss = nn.functional.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        if given.clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        loss.item()

    return step


def with_context(model: nn.Module, batch: Any, given: argparse.Namespace) -> Callable[[], None]:
    """The same in the context."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    clipping = {"kind": "global_norm", "max_norm": 1.0} if given.clip else None
    context = HybridPrecisionContext(given.mode, {"clipping": clipping}, device=given.device)

    def step() -> None:
        images, labels = batch
        with context:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()

    return step


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Times both in turns.

    Returns:
        Median seconds a step of each, median and quartiles of the paired ratios.
    """
    torch.manual_seed(0)
    images = torch.randn(given.images, 3, given.size, given.size, device=given.device)
    labels = torch.randint(0, 100, (given.images,), device=given.device)
    model = resnet_50(given.width).to(given.device, memory_format=torch.channels_last)
    other = resnet_50(given.width).to(given.device, memory_format=torch.channels_last)
    other.load_state_dict(model.state_dict())
    batch = images.contiguous(memory_format=torch.channels_last), labels
    steps = {"amp": with_amp(model, batch, given), "context": with_context(other, batch, given)}
    seconds = time_in_turns(steps, rounds=given.rounds, warm_up=2).seconds
    pairs = zip(seconds["context"], seconds["amp"], strict=True)
    ratio = Spread.of([ours / theirs for ours, theirs in pairs])
    return {
        "mode": given.mode,
        "device": given.device,
        "rounds": given.rounds,
        "amp_seconds": statistics.median(seconds["amp"]),
        "context_seconds": statistics.median(seconds["context"]),
        "ratio": ratio.median,
        "ratio_quartiles": [ratio.low, ratio.high],
    }


def main() -> None:
    """Prints the comparison."""
    given = arguments()
    result = compare(given)
    if given.json:
        print(json.dumps(result))
        return
    low, high = result["ratio_quartiles"]
    print(f"ResNet-50, {given.images} images of {given.size} px, {given.mode}, {given.device}:")
    for name, label in (("amp", "torch.amp"), ("context", "HybridPrecisionContext")):
        print(f"  {label:24} {1e3 * result[f'{name}_seconds']:8.1f} ms a step")
    print(f"  ratio, ours to PyTorch's: {result['ratio']:.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
