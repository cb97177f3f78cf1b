"""Makes the model that the user names on the command line."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxopt.cli.locate import call, locate
from fxopt.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def load_model(text: str, weights: str | None = None, seed: int = 0) -> nn.Module:
    """The model that ``text`` names, in evaluation mode.

    Args:
        text: ``torchvision:resnet50``, ``timm:resnet50``, ``path/to/file.py:name`` or
            ``package.module:name``; the name is a module, or a function or class that makes one
            when called without arguments.
        weights: A file with a state dict; or, for a zoo, ``DEFAULT``, which it may download.
        seed: For random weights.

    Raises:
        InputError: There is no such model, or the weights do not fit it.
    """
    import torch

    torch.manual_seed(seed)
    file = weights if weights is not None and weights != "DEFAULT" else None
    zoo, _, name = text.partition(":")
    if zoo in ("torchvision", "timm"):
        model = _from_zoo(zoo, name, pretrained=weights == "DEFAULT")
    elif weights == "DEFAULT":
        raise InputError(
            f"{text} has no default weights", hint="give --weights a file with a state dict"
        )
    else:
        model = _made(text, locate(text))
    return (model if file is None else _with_weights(model, Path(file))).eval()


def _from_zoo(zoo: str, name: str, *, pretrained: bool) -> nn.Module:
    try:
        module: Any = importlib.import_module("torchvision.models" if zoo == "torchvision" else zoo)
    except ImportError as error:
        raise InputError(f"{zoo} cannot be imported: {error}", hint=f"pip install {zoo}") from error
    known = module.list_models()
    if name not in known:
        raise InputError(f"{zoo} has no model {name!r}", hint=_similar(name, known))
    model: nn.Module
    if zoo == "timm":
        model = module.create_model(name, pretrained=pretrained)
    elif pretrained:
        model = module.get_model(name, weights="DEFAULT")
    else:
        model = _untrained(module.get_model_builder(name))
    return model


def _untrained(builder: Any) -> nn.Module:
    """Random weights; detection models would download those of their backbone all the same."""
    parts = [p for p in inspect.signature(builder).parameters if p.startswith("weights")]
    model: nn.Module = builder(**dict.fromkeys(parts))
    return model


def _similar(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"it has {len(known)} others"


def _made(text: str, found: Any) -> nn.Module:
    from torch import nn

    model = found if isinstance(found, nn.Module) or not callable(found) else call(text, found)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{text} is a {type(model).__name__}, not a torch.nn.Module",
            hint="name a module, or a function or class that makes one without arguments",
        )
    return model


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    import torch

    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # pickle, zip and torch raise many kinds
        raise InputError(f"the weights in {path} do not fit: {error}") from error
    return model
