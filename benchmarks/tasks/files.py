"""A trained classifier of file contents, on files of installed packages, named by extension."""

from __future__ import annotations

import json
import sysconfig
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tasks.base import Inputs, Task, accuracy, split

_HALF, _BLOCK, _PADDING = 1024, 4096, 256
_LABELS = {
    ".py": "python",
    ".pyc": "pythonbytecode",
    ".so": "elf",
    ".json": "json",
    ".html": "html",
    ".css": "css",
    ".js": "javascript",
    ".md": "markdown",
    ".rst": "rst",
    ".xml": "xml",
    ".yaml": "yaml",
    ".toml": "toml",
    ".csv": "csv",
    ".cpp": "cpp",
    ".png": "png",
    ".gz": "gzip",
    ".npy": "npy",
    ".f90": "fortran",
    ".sh": "shell",
    ".cmake": "cmake",
    ".proto": "proto",
    ".svg": "svg",
}
_EACH = 30  # scored files of a kind; a fifth as many more calibrate
_BATCH = 25


class Magika(nn.Module):
    """The network of magika's standard_v3_3, from its ONNX file."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(257, 64)
        self.bias = nn.Parameter(torch.zeros(64))
        self.positions = nn.LayerNorm(512, eps=1e-6)
        self.conv = nn.Conv1d(256, 512, 5)
        self.norm = nn.LayerNorm(512, eps=1e-6)
        self.head = nn.Linear(512, labels)

    def forward(self, content: torch.Tensor) -> torch.Tensor:
        """From bytes and padding, (batch, 2048), to logits."""
        x = F.gelu(self.embed(content) + self.bias, approximate="tanh")
        x = self.positions(x.reshape(-1, 512, 256).transpose(1, 2))
        x = F.gelu(self.conv(x), approximate="tanh").amax(2)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def magika() -> Task:
    """magika, scored by the extensions of files."""
    folder = Path(str(resources.files("magika"))) / "models" / "standard_v3_3"
    names = json.loads((folder / "config.min.json").read_text())["target_labels_space"]
    model = _model(folder / "model.onnx", len(names))
    scored, others = _files(_EACH), _files(_EACH // 5, skipped=_EACH)
    labels = torch.tensor([names.index(label) for _, label in scored])
    batches, calibration = _contents(scored), _contents(others)
    return Task("magika", model, batches, calibration, accuracy(labels), "accuracy", len(scored))


def _model(path: Path, labels: int) -> Magika:
    import onnx
    from onnx import numpy_helper

    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}

    def tensor(suffix: str) -> torch.Tensor:
        (found,) = [array for name, array in stored.items() if name.endswith(suffix)]
        return torch.from_numpy(np.array(found, dtype=np.float32))

    model = Magika(labels)
    model.load_state_dict(
        {
            "embed.weight": tensor("logits_/Const:0"),
            "bias": tensor("Dense_0/Reshape:0").flatten(),
            "positions.weight": tensor("LayerNorm_0/Reshape_2:0").flatten(),
            "positions.bias": tensor("LayerNorm_0/Reshape_3:0").flatten(),
            "conv.weight": tensor("Conv_0/transpose_3:0").squeeze(3),
            "conv.bias": tensor("const_fold_opt__209").flatten(),
            "norm.weight": tensor("LayerNorm_1/Reshape_2:0").flatten(),
            "norm.bias": tensor("LayerNorm_1/Reshape_3:0").flatten(),
            "head.weight": tensor("Const_24:0").t(),
            "head.bias": tensor("Dense_1/Reshape:0").flatten(),
        }
    )
    return model.eval()


def _files(each: int, skipped: int = 0) -> list[tuple[Path, str]]:
    """Files of each kind with their labels, spread over all that there are."""
    paths: dict[str, list[Path]] = {suffix: [] for suffix in _LABELS}
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.*")):
        if path.suffix in paths and path.is_file() and path.stat().st_size >= 64:
            paths[path.suffix].append(path)
    found = []
    for suffix, label in _LABELS.items():
        order = torch.randperm(len(paths[suffix]), generator=torch.Generator().manual_seed(0))
        chosen = order[skipped : skipped + each].tolist()
        found += [(paths[suffix][index], label) for index in chosen]
    return found


def _contents(files: list[tuple[Path, str]]) -> list[Inputs]:
    return split(torch.stack([_features(path.read_bytes()) for path, _ in files]), _BATCH)


def _features(content: bytes) -> torch.Tensor:
    """The first and the last bytes without white space around them, as magika takes them."""
    if len(content) <= _BLOCK:
        content = content.strip()
    first, last = content[:_BLOCK].lstrip()[:_HALF], content[-_BLOCK:].rstrip()[-_HALF:]
    values = torch.full((2 * _HALF,), _PADDING, dtype=torch.int64)
    values[: len(first)] = torch.tensor(list(first))
    values[2 * _HALF - len(last) :] = torch.tensor(list(last))
    return values
