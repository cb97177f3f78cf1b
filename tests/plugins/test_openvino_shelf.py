"""What is translated for any batch waits in a file, and comes back for other sizes."""

import pytest
import torch

from fxopt.backends import LoweredModule
from fxopt.cost import find_target
from fxopt_openvino import OpenVINO, convert, shelf
from tests.building import image, small_cnn

CPU = find_target("cpu")

pytestmark = pytest.mark.skipif(OpenVINO().unavailable() is not None, reason="no OpenVINO")


@pytest.fixture(autouse=True)
def all_are_worth_it(monkeypatch):
    monkeypatch.setattr(shelf, "_WORTH", 0)


@pytest.fixture
def translations(monkeypatch):
    """How often a program was translated."""
    found = []
    translate = convert._translate

    def counted(exported):
        found.append(exported)
        return translate(exported)

    monkeypatch.setattr(convert, "_translate", counted)
    return found


def lowered(program, *batches):
    module = LoweredModule(program, OpenVINO(), CPU)
    for batch in batches:
        x = image(batch)
        torch.testing.assert_close(module(x), program(x), rtol=1e-4, atol=1e-5)
    return module


def test_it_comes_back_for_other_sizes(translations):
    module = lowered(small_cnn(), 1, 2, 5)
    held = module._lowering._any_batch
    assert held._model is None
    assert held._weights is not None
    assert len(translations) == 1


def test_a_file_that_cannot_be_read_costs_a_translation(translations):
    program = small_cnn()
    module = lowered(program, 1)
    module._lowering._any_batch._weights.close()
    x = image(3)
    torch.testing.assert_close(module(x), program(x), rtol=1e-4, atol=1e-5)
    assert len(translations) == 2


def test_without_room_for_a_file_it_stays_in_memory(translations, monkeypatch, tmp_path):
    monkeypatch.setattr(shelf.tempfile, "TemporaryDirectory", _full)
    module = lowered(small_cnn(), 1, 2)
    assert module._lowering._any_batch._model is not None
    assert len(translations) == 1


def test_few_weights_stay_in_memory(monkeypatch):
    monkeypatch.setattr(shelf, "_WORTH", 1 << 20)
    assert lowered(small_cnn(), 1, 2)._lowering._any_batch._model is not None


def _full(**_):
    raise OSError("no space left on device")
