import pytest
import torch

from fxopt.pipeline.assignment import whole
from fxopt.pipeline.lowering import exact_version
from fxopt.pipeline.lowering.candidate import Candidate
from tests.building import image, small_cnn
from tests.threads import threads


@pytest.fixture(autouse=True)
def one_thread():
    """The programs are tiny: handing their work to other threads takes longer than doing it."""
    with threads(1):
        yield


@pytest.fixture
def candidates():
    """Makes candidates of one version, with examples of two and three images."""
    program = small_cnn()
    with torch.no_grad():
        version = exact_version(program, [program(image(size)) for size in (2, 3)])

    def make(*backends):
        return [Candidate(version, whole(backend)) for backend in backends]

    return make
