"""Whole nets in int8 with torch alone, beside their simulation."""

import pytest
import torch
from torch import nn

import fxopt
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_fold_bn import FoldBN
from fxopt_inductor import OneDNN
from fxopt_inductor.lowp import heavy_kernels
from fxopt_quantize import Quantize
from tests.building import aten
from tests.plugins.on_onednn import CPU, compiled, conversions, count

onednn = torch.ops.onednn

pytestmark = pytest.mark.skipif(OneDNN().unavailable() is not None, reason="torch without oneDNN")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def quantized(model, x):
    program = capture_program(model.eval(), (x,), {}).clone()
    context = Context(CPU, calibration=Calibration([(x,)], program.signature))
    FoldBN().run(program, context)
    Quantize().run(program, context)
    return program


class SmallViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def torchvision_net(name):
    import torchvision

    return torchvision.models.get_model(name, weights=None)


# How many layers there are, and how far from the simulation outputs may be, in units of what that
# is from the float model. A resnet's sums take an addend that is not rounded: that is closer to the
# float model than the simulation is, and so as far from this one.
NETS = {
    "resnet18": (lambda: torchvision_net("resnet18"), 21, 1.25),
    "mobilenet_v2": (lambda: torchvision_net("mobilenet_v2"), 53, 1.0),
    "mobilenet_v3_small": (lambda: torchvision_net("mobilenet_v3_small"), 54, 1.0),
    "shufflenet": (lambda: torchvision_net("shufflenet_v2_x0_5"), 57, 1.0),
    "vit": (SmallViT, 10, 1.0),
}


@pytest.mark.parametrize("name", NETS)
def test_whole_nets(name):
    torch.manual_seed(0)
    make, layers, apart = NETS[name]
    # of one image alone, chance decides how rounding adds up, and each machine rounds otherwise
    model, x = make().eval(), torch.randn(4, 3, 64, 64)
    program = quantized(model, x)
    executable = compiled(program, x)
    with torch.no_grad():
        wanted, simulated = model(x), program(x)[0]
    drift = float((simulated - wanted).norm())
    assert executable.precisions()["int8"] == layers
    floats = {k.kind for k in executable.kernels() if k.precision != "int8"}
    assert floats == ({"Attention"} if name == "vit" else set())
    # as far from the float model as the simulation is, and not farther from the simulation
    assert float((executable(x)[0] - wanted).norm()) < 1.1 * drift
    assert float((executable(x)[0] - simulated).norm()) < apart * drift


def test_between_the_convolutions_of_a_resnet_flow_bytes():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    program = quantized(torchvision_net("resnet18"), x)
    executable = compiled(program, x)
    assert count(executable, aten.conv2d.default, aten.linear.default) == 0
    assert count(executable, onednn.qconv2d_pointwise.binary) == 8
    # rounded at the entrance, around the last sum and its average; the sum takes both addends
    to_codes, to_floats = conversions(executable)
    assert to_codes <= 3
    assert to_floats <= 3
    assert count(executable, aten.clone.default) == 0
    kernels = heavy_kernels(executable.module).values()
    assert {kernel.name for kernel in kernels} >= {"conv1", "layer4.1.conv2", "fc"}


def test_optimize_takes_it():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten()
    )
    x = torch.randn(1, 3, 32, 32)
    fast = fxopt.optimize(
        model.eval(), (x,), passes="quantize", calibration=[(x,)], backends=["onednn"]
    )
    (record,) = [c for c in fast.report.regions[0].candidates if c.version == "lossy"]
    assert record.backend == "onednn"
    assert record.precisions == {"int8": 2}
    with torch.no_grad():
        wanted = model(x)
    assert record.error is not None
    assert record.error < 0.05
    assert float((fast(x) - wanted).norm() / wanted.norm()) < 0.05
