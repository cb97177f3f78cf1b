"""The programs that other tests build by hand are right themselves."""

import torch
from torch.nn import functional as F

from tests.building import image, small_cnn


def test_small_cnn_is_valid_and_computes_what_it_says():
    program = small_cnn()
    program.verify()
    modules = dict(program.module.named_modules())
    for batch in (2, 5):
        x = image(batch)
        relu = F.relu(modules["stem"](x))
        expected = modules["head"]((modules["body.conv"](relu) + relu).mean((2, 3)))
        torch.testing.assert_close(program.call(x), expected)


def test_its_batch_is_symbolic():
    program = small_cnn()
    sizes = [node.meta["val"].shape[0] for node in program.nodes if node.op != "output"]
    assert all(isinstance(size, torch.SymInt) for size in sizes)
    assert len({str(size) for size in sizes}) == 1
