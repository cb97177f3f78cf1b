"""What the user hands over: every form of input, and every mistake."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxopt.errors import InputError
from fxopt.frontend import check_model, normalize_inputs


def test_forms() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert normalize_inputs(model, x) == ((x,), {})
    assert normalize_inputs(model, (x,)) == ((x,), {})
    assert normalize_inputs(model, [x]) == ((x,), {})
    assert normalize_inputs(model, {"input": x}) == ((), {"input": x})
    assert normalize_inputs(model) is None


def test_offered_inputs_come_in_order() -> None:
    model = nn.Linear(4, 4).double()
    model.pretrained_cfg = {"input_size": (3, 4)}
    args, _ = normalize_inputs(model) or ((), {})
    assert (args[0].shape, args[0].dtype) == ((1, 3, 4), torch.float64)
    model.dummy_inputs = {"input": torch.zeros(5, 4)}
    assert (normalize_inputs(model) or ((), {}))[1]["input"].shape == (5, 4)
    model.example_input_array = torch.zeros(6, 4)
    assert (normalize_inputs(model) or ((), {}))[0][0].shape == (6, 4)


def test_mistakes_are_explained() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    for wrong in ((), {}, "text", 3, (1,)):
        with pytest.raises(InputError, match="hint"):
            normalize_inputs(model, wrong)
    with pytest.raises(InputError, match="inptu"):
        normalize_inputs(model, {"inptu": x})
    with pytest.raises(InputError, match="do not fit"):
        normalize_inputs(model, (x, x))
    with pytest.raises(InputError, match=r"inputs are on meta .* model is on cpu"):
        normalize_inputs(model, x.to("meta"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(value: float) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    check_model(model)
    with torch.no_grad():
        model[0].weight[1, 1] = value
        model[1].running_var[2] = value
    with pytest.raises(InputError, match=r"0\.weight, 1\.running_var"):
        check_model(model)


def test_masks_may_be_infinite() -> None:
    model = nn.Module()
    model.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))
    model.register_buffer("fill", torch.tensor(float("-inf")))
    check_model(model)
    model.mask[0, 0] = float("nan")
    with pytest.raises(InputError, match="mask"):
        check_model(model)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_weights_of_rare_kinds_are_checked(kind: torch.dtype) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, 2).to(kind))
    check_model(model)
    model.weight = nn.Parameter(torch.tensor([1.0, float("nan")]).to(kind))
    with pytest.raises(InputError, match="weight"):
        check_model(model)
    model.weight = nn.Parameter(torch.eye(2).to_sparse())
    check_model(model)


def test_layers_that_have_no_size_yet_are_named() -> None:
    with pytest.raises(InputError, match=r"1\.weight, 1\.bias"):
        check_model(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)))


def test_torchscript_is_refused() -> None:
    traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    for model in (torch.jit.script(nn.Linear(2, 2)), traced):
        with pytest.raises(InputError, match="TorchScript"):
            check_model(model)


def test_not_a_module() -> None:
    for wrong in (nn.Linear, lambda x: x, None):
        with pytest.raises(InputError, match=r"not a torch\.nn\.Module"):
            check_model(wrong)
