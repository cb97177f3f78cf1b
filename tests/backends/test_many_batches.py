"""One emitted module, called at many batch sizes from several threads at once."""

import importlib.util
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fxopt.backends.cache import LIMIT
from fxopt.cost import find_target
from fxopt.emit import emit
from fxopt.frontend import capture_program
from fxopt.pipeline.assignment import whole
from fxopt.registry import default_registry

CPU = find_target("cpu")
SIZES = 64
THREADS = 4


class Net(nn.Module):
    """A small net; one image in a batch does not change what comes out for another."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))


def emitted(model, x, backend):
    """What ``optimize`` would emit had this backend won."""
    (found,), _ = default_registry().available_backends(CPU, [backend])
    program = capture_program(model, (x,), {})
    return emit(whole(found).applied(program, CPU))


def resident_megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


@pytest.mark.parametrize("backend", ["eager", "openvino", "onnxruntime"])
def test_batches_1_to_64_in_random_order_from_four_threads(backend):
    if backend != "eager" and importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    torch.manual_seed(0)
    model, images = Net().eval(), torch.randn(SIZES, 3, 16, 16)
    fast = emitted(model, images[:2], backend)
    with torch.no_grad():
        expected = model(images)
    order = [size for size in range(1, SIZES + 1) for _ in range(3)]
    random.Random(0).shuffle(order)

    def call(size):
        return size, fast(images[:size])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(call, order[: SIZES // 2]))  # pools and caches fill up
        before = resident_megabytes()
        results = list(pool.map(call, order))
        grown = resident_megabytes() - before
    for size, output in results:
        torch.testing.assert_close(output, expected[:size], rtol=1e-4, atol=1e-5)
    assert grown < 60
    assert [len(module._compiled) for module in fast.lowered()] == [LIMIT] * (backend != "eager")
