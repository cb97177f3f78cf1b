"""Numeric comparison of flat outputs."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxopt.passes import Exact
from fxopt.pipeline import Comparison, compare
from fxopt.pipeline.compare import beyond

NAN, INF = float("nan"), float("inf")


def error(output, reference):
    return compare([output], [reference]).error


def test_relative_to_the_norm_of_the_reference():
    assert error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert error(torch.zeros(2, 2), torch.ones(2, 2)) == pytest.approx(1.0)
    assert error(torch.ones(3), torch.ones(3)) == 0


@given(st.floats(1e-300, 1e300))
def test_any_scale_will_do(scale):
    reference = torch.tensor([1.0, -2.0], dtype=torch.float64) * scale
    assert error(reference * 1.5, reference) == pytest.approx(0.5, rel=1e-6)


def test_the_worst_output_counts_and_is_named():
    ones = torch.ones(2)
    assert compare([ones, ones * 2, ones], [ones, ones, ones]) == Comparison(1.0, "output 1")


def test_computed_in_float64():
    big = torch.full((1 << 16,), 60000.0, dtype=torch.float16)  # its norm overflows in float16
    off = big.clone()
    off[0] = 0
    assert error(off, big) == pytest.approx(1 / 256)


def test_zero_reference_is_handled_absolutely():
    assert error(torch.tensor([3.0, 4.0]), torch.zeros(2)) == 5.0
    assert error(torch.zeros(2), torch.zeros(2)) == 0


def test_whole_numbers_and_booleans_by_share_that_differs():
    assert error(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 900])) == 0.25
    assert error(torch.tensor([True, False]), torch.tensor([True, True])) == 0.5


def test_complex_numbers():
    assert error(torch.tensor([3 + 4j]), torch.tensor([3 + 0j])) == pytest.approx(4 / 3)


@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_special_values_must_be_at_the_same_places(special):
    reference = torch.tensor([1.0, special, 2.0])
    assert error(reference.clone(), reference) == 0
    assert error(torch.tensor([1.0, special, 3.0]), reference) == pytest.approx(1 / math.sqrt(5))
    assert error(torch.tensor([1.0, 1.0, 2.0]), reference) == INF
    assert error(reference, torch.tensor([1.0, 1.0, 2.0])) == INF
    assert error(torch.tensor([special, 1.0, 2.0]), reference) == INF


def test_infinities_of_the_other_sign_differ():
    found = compare([torch.tensor([INF])], [torch.tensor([-INF])])
    assert found.error == INF
    assert "infinite" in found.where


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (torch.zeros(2, 3), r"output 0 is f32\[2, 3\], not f32\[3, 2\]"),
        (torch.zeros(3, 2, dtype=torch.float64), r"output 0 is f64\[3, 2\], not f32\[3, 2\]"),
        (3, "output 0 is a int, not a Tensor"),
        (None, "output 0 is a NoneType, not a Tensor"),
    ],
)
def test_mismatches_are_told_in_words(output, words):
    found = compare([output], [torch.zeros(3, 2)])
    assert found.error == INF
    assert re.search(words, found.where), found.where


def test_another_number_of_outputs():
    found = compare([torch.zeros(1)], [])
    assert found == Comparison(INF, "there are 1 outputs for 0")


def test_plain_values():
    assert error(3, 3) == 0
    assert error(3, 4) == 1
    assert error("a", "a") == 0
    assert error(None, None) == 0
    assert error(1.5, 1.0) == pytest.approx(0.5)
    assert compare([], []).error == 0


def test_empty_tensors_agree():
    assert error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0
    assert error(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)) == 0


def test_each_output_has_the_tolerance_of_its_dtype():
    tolerance = Exact().tolerance
    single, half = torch.ones(4), torch.ones(4, dtype=torch.bfloat16)
    assert beyond([single, half * 1.0625], [single, half], tolerance) is None
    found, allowed = beyond([single * 1.01, half], [single, half], tolerance)
    assert found.where == "output 0"
    assert allowed == 1e-4
    whole = torch.tensor([1, 2])
    assert beyond([whole + 1], [whole], tolerance) is not None


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=8))
def test_anything_equals_itself(values):
    tensor = torch.tensor(values, dtype=torch.float64)
    assert error(tensor.clone(), tensor) == 0
