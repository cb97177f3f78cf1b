"""Walking over data: the same order for the same seed, whoever draws it."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from fxopt.training.data import count, walk

DATA = TensorDataset(torch.arange(24))


def own():
    return torch.Generator().manual_seed(5)


class Shuffled:
    """Batches of a generator of its own."""

    def __init__(self):
        self.generator = own()

    def __iter__(self):
        yield from torch.randperm(24, generator=self.generator).split(6)


LOADERS = {
    "plain": lambda: DataLoader(DATA, batch_size=6, shuffle=True),
    "loader": lambda: DataLoader(DATA, batch_size=6, shuffle=True, generator=own()),
    "sampler": lambda: DataLoader(DATA, 6, sampler=RandomSampler(DATA, generator=own())),
    "batch_sampler": Shuffled,
    "within": lambda: BatchSampler(RandomSampler(DATA, generator=own()), 6, drop_last=False),
}


def order(data, seed):
    return [value for (x,), _, _ in walk(data, False, seed) for value in x.tolist()]


@pytest.mark.parametrize("kind", LOADERS)
def test_the_seed_decides_the_order(kind):
    made = LOADERS[kind]()
    batched = kind in ("batch_sampler", "within")
    data = DataLoader(DATA, batch_sampler=made) if batched else made
    first = order(data, 0)
    assert order(data, 0) == first
    assert order(data, 1) != first
    assert sorted(first) == list(range(24))


class Stream(IterableDataset):
    """Does not know how much it yields."""

    def __iter__(self):
        return iter(torch.arange(24))


@pytest.mark.parametrize(
    "data", [DataLoader(DATA, 6), DataLoader(Stream(), 6), [DATA] * 4, Shuffled()]
)
def test_batches_are_counted(data):
    assert count(data) == 4
