import pytest
from typer.testing import CliRunner

from fxopt.cli import app

MODELS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def loader():
    return [torch.ones(2, 3, 16, 16)] * 3


def score(model):
    with torch.no_grad():
        return model(torch.ones(2, 3, 16, 16)).isfinite().float().mean().item()


number = 3
"""


@pytest.fixture
def models(tmp_path):
    """A user's file with a model, a calibration loader and a score."""
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


@pytest.fixture
def fxopt(monkeypatch):
    """Runs the command line in this process; wide, so that no line is wrapped."""
    monkeypatch.setenv("COLUMNS", "200")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])
