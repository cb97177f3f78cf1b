"""``target="cuda"``: what comes out runs on the GPU, and yields what the CPU does."""

import copy

import pytest
import torch
from torch import nn

import fxopt
from fxopt.cost import find_target
from fxopt.errors import InputError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_fold_bn import FoldBN
from fxopt_low_rank import LowRank
from fxopt_prune import Prune, Sparsify
from fxopt_quantize import Quantize, QuantizeDynamic, QuantizeWeights

from .support import data, net, relative

LOSSY = [
    Prune(ratio=0.5), Sparsify(ratio=0.5), LowRank(keep=0.5, cost="work"),
    LowRank(keep=0.5, cost="work", method="cp", weighted=False),
    LowRank(keep=0.5, cost="work", method="separable"),
    Quantize(), Quantize(weight_bits=4, rounding="gptq"), QuantizeDynamic(),
    QuantizeWeights(group=32),
]  # fmt: skip


def test_exact_passes_give_the_same_answers_in_any_batch():
    model, (x, _) = net().cuda(), data()
    fast = fxopt.optimize(model, (x[:4].cuda(),), target="cuda")
    assert {record.status for record in fast.report.passes} <= {"applied", "unchanged"}
    assert "fold_bn" in fast.recipe
    assert fast.report.target.startswith("cuda")
    for size in (1, 4, 64):
        taken = x[:size].cuda()
        outputs = fast(taken)
        assert outputs.is_cuda
        assert relative(outputs, model(taken)) < 1e-5


def ran(item, model, x):
    """What a pass makes of a model on the device of ``x``, after batch norms are folded."""
    program = capture_program(model.to(x.device), (x[:4],), {}).clone()
    target = find_target(x.device.type)
    FoldBN().run(program, Context(target))
    context = Context(target, calibration=Calibration(x.split(16), program.signature))
    assert item.run(program, context).changed
    with torch.no_grad():
        return program.module(x)[0]


@pytest.mark.parametrize("item", LOSSY, ids=repr)
def test_lossy_passes_do_what_they_do_on_a_cpu(item):
    model, (x, _) = net().double(), data()
    x = x.double()
    on_cpu = ran(item, copy.deepcopy(model), x)
    on_gpu = ran(item, copy.deepcopy(model), x.cuda())
    assert on_gpu.is_cuda
    assert relative(on_cpu, model(x)) > 1e-3  # the pass has done something
    assert relative(on_gpu, on_cpu) < 1e-6


def test_a_transformer_with_floats_of_half_the_size():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(4, 12, 64)
    expected = model(x)
    for dtype, limit in ((torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)):
        there = copy.deepcopy(model).to("cuda", dtype)
        fast = fxopt.optimize(there, (x.to("cuda", dtype),), target="cuda")
        outputs = fast(x.to("cuda", dtype))
        assert outputs.dtype == dtype
        assert relative(outputs, expected) < limit


def test_data_may_lie_on_the_cpu():
    recipe = "prune{importance=taylor},finetune,fold_bn,quantize{equalization=activations}"
    model, (x, labels) = net().cuda(), data()
    batches = list(zip(x.split(16), labels.split(16), strict=True))
    fast = fxopt.optimize(
        model, (x[:4].cuda(),), target="cuda", passes=recipe, calibration=x.split(16),
        training=fxopt.Training(batches, epochs=1),
    )  # fmt: skip
    ran = {record.name: record.reason for record in fast.report.passes}
    assert {"prune", "finetune", "quantize"} <= set(ran)
    # so small a net gains nothing on a GPU, but nothing else may speak against a pass
    assert all(not reason or reason.startswith("not faster") for reason in ran.values()), ran
    assert fast(x.cuda()).is_cuda


def test_tf32_does_not_count_against_an_exact_pass():
    """Torch lets convolutions round to it, and each program rounds something else."""
    torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(0)
    layers = [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    model = nn.Sequential(nn.Conv2d(3, 64, 1), *layers, *copy.deepcopy(layers)).cuda().eval()
    fast = fxopt.optimize(model, (torch.randn(4, 3, 32, 32).cuda(),), target="cuda")
    assert {record.name: record.status for record in fast.report.passes}["fold_bn"] == "applied"


@pytest.mark.parametrize(("device", "target"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_model_elsewhere_is_refused(device, target):
    model, (x, _) = net().to(device), data()
    with pytest.raises(InputError, match=f"on {device}.*run on {target}"):
        fxopt.optimize(model, (x.to(device),), target=target)
