"""The plain PyTorch MNIST example; ``--dp`` makes it private. Look for "dp" in the code: those lines are the whole difference.

    python scripts/mnist_example.py                  # not private
    python scripts/mnist_example.py --dp             # (ε = 3, δ = 1e-5)-differentially private

Both print test accuracy and time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import nn
from torch.nn import functional as F

from scatterdp.config import LARGEST
from scatterdp.datasets import load_dataset
from scatterdp.errors import ConfigError
from scatterdp.exits import exit_code
from scatterdp.training.privacy_engine import PrivacyEngine


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to train."""

    dataset: str = "mnist"
    """mnist, fmnist, or your own grey images of 28×28 pixels: a folder or an .npz."""
    data_dir: Path | None = None
    """Where data sets are kept."""
    epochs: int = 10
    batch_size: int = 1024
    """Examples a private step; ordinary steps have an eighth of it."""
    lr: float = 1.0
    """Learning rate of private steps; ordinary steps have a twentieth of it."""
    dp: bool = False
    """Train with differential privacy."""
    target_epsilon: float = 3.0
    """What a private training may spend, at δ = 1e-5."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 8)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: expected an integer ≥ {least}")
        for name in ("lr", "target_epsilon"):
            if not 0 < getattr(self, name) <= LARGEST:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number > 0 and ≤ {LARGEST:g}")


class Net(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 8, 2, padding=2), nn.Conv2d(16, 32, 4, 2)
        self.fc1, self.fc2 = nn.Linear(512, 32), nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2, 1)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2, 1)
        return self.fc2(torch.tanh(self.fc1(x.flatten(1))))


def main(options: Options) -> None:
    """Train and test."""
    data = load_dataset(options.dataset, data_dir=options.data_dir)
    if data.image_shape != (1, 28, 28):
        raise ConfigError(
            f"dataset={options.dataset}: images of {'×'.join(map(str, data.image_shape))}, this network takes grey ones of 28×28; give mnist or fmnist"
        )
    if options.batch_size > len(data.y_train):
        raise ConfigError(
            f"batch_size={options.batch_size}: expected at most the {len(data.y_train)} training examples"
        )
    x, x_test = (torch.from_numpy(a).unsqueeze(1).float() / 127.5 - 1 for a in (data.x_train, data.x_test))
    y, y_test = (torch.from_numpy(a) for a in (data.y_train, data.y_test))
    model = Net(data.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr if options.dp else options.lr / 20, momentum=0.9)
    begin = time.monotonic()
    batches = ((r, True) for _ in range(options.epochs) for r in torch.randperm(len(x)).split(options.batch_size // 8))
    if options.dp:
        engine = PrivacyEngine(
            model,
            batch_size=options.batch_size,
            sample_size=len(x),
            epochs=options.epochs,
            max_grad_norm=0.1,
            target_epsilon=options.target_epsilon,
        )
        engine.attach(optimizer)
        batches = engine.batches()
        print(f"(ε = {options.target_epsilon:g}, δ = {engine.plan.delta:g})-differentially private")
    for rows, last in batches:
        loss = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
        if options.dp:
            (optimizer.step if last else optimizer.virtual_step)(loss=loss)  # pyright: ignore
        else:
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
    print(f"test accuracy {accuracy:.4f} after {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(tyro.cli(Options, use_underscores=True, description=__doc__))))
