"""What quantize does before it rounds, on random models: it changes no output."""

import pytest
import torch
from hypothesis import given

from fxopt.testing import worst_error
from fxopt.testing.strategies import generated_cases
from fxopt_fold_bn import FoldBN
from fxopt_quantize import Quantize
from fxopt_quantize.preparing import Preparation
from fxopt_quantize.rules import layers_of
from fxopt_quantize.settings import Settings
from tests.random_models import on_random_models


@on_random_models(25)
@given(generated_cases())
def test_moving_factors_between_channels_keeps_the_numbers(case):
    for equalization, smoothing in (("weights", 0.0), ("activations", 0.0), ("weights", 0.7)):
        program = case.program.clone()
        FoldBN().run(program, case.context())
        folded = program.clone()
        settings = Settings(equalization=equalization, smoothing=smoothing)
        Preparation(settings, program, case.context()).rescale()
        program.verify()
        assert worst_error(case, program) <= 1e-8
        assert len(layers_of(program)) == len(layers_of(folded))


@on_random_models(15)
@given(generated_cases())
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_all_settings_at_once_give_a_program_in_int8(rounding, case):
    program = case.program.clone()
    FoldBN().run(program, case.context())
    item = Quantize(equalization="activations", smoothing=0.5, rounding=rounding)
    if item.inapplicable(program, case.context()):
        return
    result = item.run(program, case.context())
    program.verify()
    assert result.details["layers"] + result.details["float_layers"] > 0
    for outputs in case.outputs(program):
        assert all(torch.isfinite(output).all() for output in outputs)
    assert worst_error(case, program) < 0.5
