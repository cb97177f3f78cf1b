"""What tests of backends share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def two_threads():
    """Backends are lowered to as on a user's machine, whatever the suite is given."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
