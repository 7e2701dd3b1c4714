"""A PyTorch training loop in mixed precision; the loop itself is left as it was.

    python examples/pytorch_loop.py --mode fp16 --epochs 5

The data are scikit-learn's handwritten digits. Neither Keras nor TensorFlow is imported.
"""

import argparse
from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from deepseek_hpf.torch import HybridPrecisionContext

FOR_TEST = 5  # Every fifth image.


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", default="auto", help="auto, bf16, fp16 or fp32")
    parser.add_argument("--config", metavar="FILE", help="a JSON configuration")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def load() -> tuple[TensorDataset, TensorDataset]:
    """Returns digits to train with, and others to test with."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    classes = torch.tensor(labels)
    for_test = torch.arange(len(classes)) % FOR_TEST == 0
    return (
        TensorDataset(pixels[~for_test], classes[~for_test]),
        TensorDataset(pixels[for_test], classes[for_test]),
    )


def create_model() -> nn.Module:
    """A small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def accuracy(model: nn.Module, dataset: TensorDataset) -> float:
    """Returns the share of images that are recognized."""
    images, labels = dataset.tensors
    model.eval()
    with torch.no_grad():
        found = model(images).argmax(1)
    model.train()
    return float((found == labels).float().mean())


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains, prints a line an epoch, and returns the accuracy on the images for testing."""
    given = parse(arguments)
    torch.manual_seed(given.seed)
    train, test = load()
    loader = DataLoader(train, given.batch_size, shuffle=True)
    model = create_model()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    context = HybridPrecisionContext(given.mode, given.config)
    print(f"{context.autocast_dtype('cpu')} on the CPU: {context.reason}")
    with context:
        for epoch in range(given.epochs):
            for inputs, labels in loader:
                optimizer.zero_grad()
                loss = criterion(model(inputs), labels)
                loss.backward()
                optimizer.step()
            print(
                f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy {accuracy(model, test):.3f}, "
                f"loss scale {context.scale:g}, skipped steps {context.skipped_steps}"
            )
    return accuracy(model, test)


if __name__ == "__main__":
    main()
