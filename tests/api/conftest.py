"""Small models, and a registry to which a test can add plugins of its own."""

import pytest
import torch
from torch import nn

import fxopt.api.entry as entry
from fxopt.plugin import hookimpl
from fxopt.registry import load_registry


class Residual(nn.Module):
    """A small residual net with everything that the first passes care about."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.block(x)
        return self.head(self.drop(x.mean((2, 3))))


def vary(model):
    """Gives batch norms statistics that are not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return vary(Residual())


@pytest.fixture
def x():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def large():
    """An input that takes the model far longer than what a busy machine adds to a tuned backend."""
    return torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def plugins(monkeypatch):
    """Call it with classes of passes and backends, and facts: they are installed for the test."""

    def install(passes=(), backends=(), facts=()):
        class Plugin:
            @hookimpl
            def fxopt_passes(self):
                return list(passes)

            @hookimpl
            def fxopt_backends(self):
                return list(backends)

            @hookimpl
            def fxopt_facts(self):
                return list(facts)

        registry = load_registry()
        registry.register(Plugin(), "of this test")
        monkeypatch.setattr(entry, "default_registry", lambda: registry)
        return registry

    return install
