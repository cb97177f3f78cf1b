"""How many threads torch and the backends take."""

from contextlib import contextmanager

import torch


@contextmanager
def threads(count):
    """So many inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
