"""What runs on a GPU, and is skipped where there is none."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Marks the tests of this folder, and skips them with a reason."""
    skip = pytest.mark.skip(reason="needs a GPU, and torch finds none")
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def exact_and_deterministic():
    """No TF32, and no atomic additions in cuDNN: what is compared here is compared exactly."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before
