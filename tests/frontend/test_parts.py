"""Models of which only parts can be captured."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from fxopt.errors import CaptureError
from fxopt.frontend import GuardedPart, PartialCapture, capture_parts, capture_program
from fxopt.ir import Program
from tests.frontend.support import randn


class Called(nn.Module):
    """A program, called as the part that it replaces."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.module, self.program, self.calls = program.module, program, 0

    def forward(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        return self.program.call(*args, **kwargs)


def install(partial: PartialCapture) -> dict[str, Called]:
    called = {name: Called(program) for name, program in partial.parts.items()}
    for name, module in called.items():
        partial.parts[name].verify()
        partial.install(name, module)
    return called


class Undecided(nn.Module):
    """A loop that depends on the data around a body that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.gate = Gate()
        self.unused = nn.Linear(4, 4)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if x.sum() > -1e9:
                x = block(x)
        return self.act(self.gate(x))  # type: ignore[no-any-return]


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y if y.sum() > 0 else -y


def test_the_largest_parts_are_captured() -> None:
    model, x = Undecided().double(), randn(3, 4)
    partial = capture_parts(model, (x,), {})
    assert list(partial.parts) == ["stem", "blocks.0", "blocks.1", "gate.inner"]
    assert [name for name, _ in partial.python] == ["gate", "unused"]
    reasons = dict(partial.python)
    assert "aten.item" in reasons["gate"]
    assert "does not call" in reasons["unused"]
    assert all(program.signature.batch for program in partial.parts.values())
    assert model.training
    assert not partial.model.training
    called = install(partial)
    model.eval()
    for size in (3, 1, 7):
        x = randn(size, 4)
        torch.testing.assert_close(partial.model(x), model(x), rtol=1e-12, atol=1e-12)
    assert [module.calls for module in called.values()] == [3, 3, 3, 3]


def test_calls_of_other_sizes_reach_the_original() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if y.sum() > -1e9:
                y = y[..., :4]
            return self.conv(y)  # type: ignore[no-any-return]

    model, x = Pyramid().double().eval(), randn(2, 2, 8, 8)
    partial = capture_parts(model, (x,), {})
    assert "fits 1 of 2" in partial.parts["conv"].notes[-1]
    called = install(partial)
    torch.testing.assert_close(partial.model(x), model(x), rtol=1e-12, atol=1e-12)
    assert called["conv"].calls == 1


class Inspecting(nn.Module):
    """Python that looks at its layers, and does not only call them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Encoder()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.to(self.stem.inner.weight.dtype)) * self.stem.scale
        if x.sum() > -1e9:
            x = self.body(x) if self.body else x
        for layer in self.children():
            x = layer(x) * 2 if isinstance(layer, nn.Sequential) else layer.encode(x)
        return self.body[0](x) * len(self.body) + sum(layer(x) for layer in self.body)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.scale = 3.0

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]

    def encode(self, x: Tensor) -> Tensor:
        return -self.inner(x)


def test_python_may_look_at_a_part_as_at_the_original() -> None:
    model, x = Inspecting().double().eval(), randn(3, 4)
    partial = capture_parts(model, (x,), {})
    called = install(partial)
    torch.testing.assert_close(partial.model(x), model(x), rtol=1e-12, atol=1e-12)
    assert {name: module.calls for name, module in called.items()} == {"stem": 1, "body": 2}
    with pytest.raises(AttributeError, match="nothing"):
        _ = partial.model.stem.nothing


def test_a_part_is_copied_and_pickled_as_itself() -> None:
    model, x = Inspecting().double().eval(), randn(3, 4)
    partial = capture_parts(model, (x,), {})
    optimized = nn.Linear(4, 4).double()
    partial.install("stem", optimized)
    for twin in (copy.deepcopy(partial.model), pickle.loads(pickle.dumps(partial.model))):
        assert type(twin.stem) is GuardedPart
        assert isinstance(twin.stem, Encoder)
        assert torch.equal(twin.stem(x), optimized(x))


class Casting(nn.Module):
    """Calls a part inside of autocast, and decides by the data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.stem(x).float()
        return self.head(x) if x.sum() > -1e9 else x  # type: ignore[no-any-return]


def test_a_part_that_autocast_reaches_from_outside_says_so() -> None:
    partial = capture_parts(Casting().eval(), (randn(3, 4).float(),), {})
    assert list(partial.parts) == ["head"]
    ((name, reason),) = partial.python
    assert name == "stem"
    assert "inside of torch.autocast" in reason


class Described(nn.Module):
    """A part that takes sizes from a tensor without data, of a device that knows no autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return self.fc(x) * like.shape[0]  # type: ignore[no-any-return]


class Describing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Described()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x, torch.empty(3, device="meta"))
        return y if y.sum() > -1e9 else x


def test_a_part_may_take_tensors_without_data() -> None:
    partial = capture_parts(Describing().double().eval(), (randn(3, 4),), {})
    assert list(partial.parts) == ["part"]


def test_torchscript_inside_of_a_model_stays() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout()))
    model, x = nn.Sequential(scripted, nn.Linear(4, 4)).double().eval(), randn(3, 4)
    with pytest.raises(CaptureError):
        capture_program(model, (x,), {})
    partial = capture_parts(model, (x,), {})
    assert list(partial.parts) == ["1"]
    assert "0" in dict(partial.python)
    install(partial)
    torch.testing.assert_close(partial.model(x), model(x), rtol=1e-12, atol=1e-12)


def test_nothing_to_capture_is_an_error() -> None:
    model = Gate()
    model.inner = nn.Identity()
    with pytest.raises(CaptureError, match="no part of Gate"):
        capture_parts(model, (torch.randn(2, 4),), {})


def test_a_detection_model() -> None:
    torch.manual_seed(0)
    settings = {"weights": None, "weights_backbone": None, "min_size": 64, "max_size": 96}
    model = fasterrcnn_mobilenet_v3_large_320_fpn(**settings)
    model = model.double().eval()
    images = [randn(3, 96, 128), randn(3, 100, 120)]
    partial = capture_parts(model, (images,), {})
    assert {"backbone", "rpn.head", "roi_heads.box_head"} <= set(partial.parts)
    called = install(partial)
    with torch.no_grad():
        for batch in (images, images[:1], [randn(3, 128, 96)]):
            for have, want in zip(partial.model(batch), model(batch), strict=True):
                assert all(torch.equal(have[key], want[key]) for key in want)
    assert called["backbone"].calls == 2
