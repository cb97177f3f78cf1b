import pytest
import torch

from fxopt.pipeline.assignment import whole
from fxopt.pipeline.isolation import Isolation
from fxopt.pipeline.lowering import exact_version
from fxopt.pipeline.lowering.candidate import Candidate
from tests.building import image, small_cnn
from tests.pipeline.bad_backends import Bad
from tests.pipeline.isolated import EXAMPLES, PLUGIN, references
from tests.pipeline.support import TARGET
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


@pytest.fixture(scope="module")
def isolation():
    with Isolation(plugins=(PLUGIN,)) as made:
        made.warm_up()
        yield made


@pytest.fixture(scope="module")
def parcel(isolation):
    program = small_cnn()
    with isolation.pack(program, EXAMPLES, references(program)) as packed:
        assert packed.obstacle == ""
        yield packed


@pytest.fixture
def trial(isolation, parcel):
    def run(what, *, which=(0, 1), tolerance=1e-4, target=TARGET, **settings):
        rules = {
            name: settings.pop(name) for name in ("also", "within", "keep") if name in settings
        }
        timeout = settings.pop("timeout", 60.0)
        return isolation.trial(
            parcel,
            whole(Bad(what, **settings)),
            target,
            timeout=timeout,
            tolerance=tolerance,
            which=which,
            **rules,
        )

    return run
