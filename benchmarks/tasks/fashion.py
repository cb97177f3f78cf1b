"""Small nets trained on Fashion-MNIST (Debian: dataset-fashion-mnist)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tasks.base import Task, accuracy, split

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.286, 0.353  # of pixels from 0 to 1
_EPOCHS = 3


class Block(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _project(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Separable(nn.Module):
    """An inverted residual with a depthwise convolution (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        wide = inputs * expand
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.add = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.add else self.body(x)


def _project(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _network(block: type[Block] | type[Separable]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        block(16, 16, 1),
        block(16, 32, 2),
        block(32, 32, 1),
        block(32, 64, 2),
        block(64, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


FASHION_NETS = {"fashion_resnet": Block, "fashion_mobilenet": Separable}


def fashion(name: str, cache: Path) -> Task:
    """A net trained on Fashion-MNIST for three epochs; trained once, then read from ``cache``."""
    train, train_labels = images("train")
    test, labels = images("t10k")
    torch.manual_seed(0)
    model = _network(FASHION_NETS[name])
    path = cache / f"{name}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        _train(model, train, train_labels)
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    batches, calibration = split(test, 250), split(train[:512], 32)
    return Task(
        name,
        model.eval(),
        batches,
        calibration,
        accuracy(labels),
        "accuracy",
        len(labels),
        DataLoader(TensorDataset(train, train_labels), batch_size=128, shuffle=True),
    )


def images(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised images of shape (count, 1, 28, 28), and their labels.

    Args:
        part: ``train`` or ``t10k``.
    """
    if not FASHION_MNIST.exists():
        raise SystemExit("Fashion-MNIST is missing: apt-get install dataset-fashion-mnist")
    packed = gzip.decompress((FASHION_MNIST / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(packed, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    x = (torch.from_numpy(pixels.astype(np.float32)) / 255 - MEAN) / STD
    return x, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))


def _train(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, batch: int = 128) -> None:
    steps = _EPOCHS * (len(x) // batch)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps + _EPOCHS)
    model.train()
    for epoch in range(_EPOCHS):
        for rows in torch.randperm(len(x)).split(batch):
            loss = F.cross_entropy(model(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule.last_epoch < steps + _EPOCHS - 1:
                schedule.step()
        print(f"  epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
