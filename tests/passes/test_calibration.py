"""Calibration data in all the forms in which users have it."""

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, TensorDataset

from fxopt.errors import CalibrationError
from fxopt.ir import Signature
from fxopt.passes import Calibration, batch_arguments

LEAF = pytree.tree_structure(0)
ONE = Signature(pytree.tree_structure(((0,), {})), LEAF, batch=True)
KEYWORDS = Signature(pytree.tree_structure(((), {"ids": 0, "mask": 0})), LEAF, batch=True)


def batches(count=3):
    return [torch.full((2, 4), float(i)) for i in range(count)]


def firsts(calibration):
    return [flat[0][0, 0].item() for flat in calibration]


@pytest.mark.parametrize(
    "make",
    [
        lambda: batches(),
        lambda: tuple(batches()),
        lambda: iter(batches()),
        lambda: (batch for batch in batches()),
        lambda: [(batch,) for batch in batches()],
        lambda: [[batch] for batch in batches()],
        lambda: map(torch.clone, batches()),
    ],
    ids=["list", "tuple", "iterator", "generator", "of tuples", "of lists", "map"],
)
def test_every_iterable_can_be_walked_again(make):
    calibration = Calibration(make(), ONE)
    calibration.check()
    assert firsts(calibration) == [0, 1, 2]
    assert firsts(calibration) == [0, 1, 2]


def test_data_loader():
    loader = DataLoader(TensorDataset(torch.arange(6.0).reshape(6, 1)), batch_size=2)
    assert firsts(Calibration(loader, ONE)) == [0, 2, 4]


def test_dicts_are_keyword_inputs_in_any_order():
    ids, mask = torch.zeros(1), torch.ones(1)
    flats = list(Calibration([{"mask": mask, "ids": ids}], KEYWORDS))
    assert flats[0][0] is ids
    assert flats[0][1] is mask


def test_the_limit_holds_and_stops_reading():
    seen = []

    def endless():
        while True:
            seen.append(len(seen))
            yield torch.zeros(1, 4)

    assert len(list(Calibration(endless(), ONE, limit=3))) == 3
    assert len(seen) <= 4
    assert len(list(Calibration(batches(), ONE, limit=2))) == 2


@pytest.mark.parametrize("empty", [[], iter([]), (), {}.values()])
def test_empty_is_an_error_that_says_what_to_give(empty):
    calibration = Calibration(empty, ONE)
    for use in (calibration.check, lambda: list(calibration)):
        with pytest.raises(CalibrationError, match="empty") as caught:
            use()
        assert "iterable of batches" in caught.value.hint


def test_labels_are_pointed_out():
    labelled = [(torch.zeros(2, 4), torch.zeros(2))]
    with pytest.raises(CalibrationError, match="another structure") as caught:
        Calibration(labelled, ONE).check()
    assert "leave labels out" in caught.value.hint


@pytest.mark.parametrize("batch", [{"ids": 1}, {"ids": 1, "mask": 2, "labels": 3}])
def test_missing_and_unknown_keywords(batch):
    with pytest.raises(CalibrationError, match="another structure"):
        Calibration([batch], KEYWORDS).check()


def test_a_batch_of_another_kind():
    with pytest.raises(CalibrationError, match="is a str"):
        Calibration(["image.png"], ONE).check()
    assert batch_arguments({"a": 1}) == ((), {"a": 1})
