"""The user's batches come to where the model runs."""

from collections import UserDict

import pytest
import torch

from fxopt.passes import placed

META = torch.zeros(2, 3, device="meta")


class Encoding(UserDict):
    """What a tokenizer yields: a mapping that is no dict."""


def test_tensors_are_moved_and_the_rest_stays():
    x, name = torch.zeros(2, 3), "text"
    batches = [x, (x, [x, 1]), {"a": x, "b": name}, Encoding(ids=x)]
    one, (two, (three, number)), named, encoded = placed(batches, ((META,), {"n": 3}))
    moved = [one, two, three, named["a"], encoded["ids"]]
    assert [tensor.device.type for tensor in moved] == ["meta"] * 5
    assert (number, named["b"]) == (1, name)
    assert x.device.type == "cpu"


def test_batches_are_walked_each_time():
    batches = placed([torch.zeros(1), torch.zeros(2)], META)
    assert [len(list(batches)) for _ in range(2)] == [2, 2]


@pytest.mark.parametrize("inputs", [(META, torch.zeros(1)), (), None])
def test_without_one_place_they_stay(inputs):
    batches = [torch.zeros(1)]
    assert placed(batches, inputs) is batches
    assert placed(None, META) is None
