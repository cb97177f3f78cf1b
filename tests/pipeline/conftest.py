import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The programs are tiny: handing their work to other threads takes longer than doing it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
