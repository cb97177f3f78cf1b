"""Training on a GPU: accelerate takes it wherever there is one, whatever the target."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxopt
from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt.training import Trainer, Training
from fxopt_fold_bn import FoldBN
from fxopt_prune import Prune, Sparsify
from fxopt_quantize import Quantize
from fxopt_recover import Distill, Finetune

from .support import data, net

CASES = {
    "finetune": (FoldBN(), Finetune()),
    "sparse": (Sparsify(ratio=0.5), Finetune()),
    "distilled": (Prune(ratio=0.5), Distill(weight=0.1)),
    "attention": (Prune(ratio=0.5), Distill(hints="attention", weight=0.1)),
    "lsq": (FoldBN(), Quantize(training="lsq")),
}


def shuffled():
    return DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True)


def program():
    return capture_program(net(), (data()[0][:4],), {}).clone()


def weights(program):
    return {name: tensor.clone() for name, tensor in program.module.state_dict().items()}


def loss(program, x):
    """What the training has to lower."""
    with torch.no_grad():
        return float(nn.functional.cross_entropy(program.module(x)[0].cpu(), data()[1]))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("before", "item"), CASES.values(), ids=CASES)
def test_passes_that_train(before, item, device):
    """The loss goes down, and the program is where it was, with either target."""
    x = data()[0].to(device)
    program = capture_program(net().to(device), (x[:4],), {}).clone()
    trainer = Trainer(Training(shuffled(), epochs=15, learning_rate=1e-2))
    context = Context(
        find_target(device), calibration=Calibration(x.split(16), program.signature),
        training=trainer, original=program.clone(),
    )  # fmt: skip
    assert before.run(program, context).changed
    start = loss(program, x)
    assert item.run(program, context).changed
    assert loss(program, x) < 0.95 * start
    assert {tensor.device.type for tensor in weights(program).values()} == {device}
    assert program.module(x)[0].isfinite().all()


def test_what_is_trained_on_a_gpu_is_optimized_for_a_cpu():
    model, (x, _) = net(), data()
    before = copy.deepcopy(model.state_dict())
    fast = fxopt.optimize(
        model, (x[:4],), passes="prune{ratio=0.5},finetune,fold_bn", calibration=x.split(16),
        training=fxopt.Training(shuffled(), epochs=2),
    )  # fmt: skip
    assert "finetune" in fast.recipe
    assert fast(x).device.type == "cpu"
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_training_that_was_cut_short_ends_with_the_same_weights(precision, tmp_path):
    settings = {"epochs": 3, "precision": precision}

    class Cut(DataLoader):
        def __iter__(self):
            for count, batch in enumerate(super().__iter__()):
                if count == 2:
                    raise KeyboardInterrupt
                yield batch

    whole, resumed = program(), program()
    expected = Trainer(Training(shuffled(), **settings)).train(whole)
    cut = Cut(TensorDataset(*data()), batch_size=16, shuffle=True)
    with pytest.raises(KeyboardInterrupt):
        Trainer(Training(cut, checkpoint_seconds=0, **settings), folder=tmp_path).train(program())
    again = Trainer(Training(shuffled(), **settings), folder=tmp_path).train(resumed)
    assert again.losses == expected.losses
    found = weights(resumed)
    assert all(torch.equal(found[name], now) for name, now in weights(whole).items())
    assert not any(tensor.is_cuda for tensor in found.values())
