"""Training and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fxopt.demo.digits import Digits

_BATCH = 50
_PEAK_RATE = 3e-3


def train(
    model: nn.Module,
    digits: Digits,
    *,
    epochs: int = 2,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> nn.Module:
    """Trains ``model`` in place and returns it in evaluation mode.

    AdamW under the one-cycle schedule (Smith, 2018) gets there in few epochs. It runs on one
    thread: for layers this small a second one gains little, and where other work keeps the cores
    busy, threads that wait for each other take many times as long.
    """
    with _one_thread():
        return _train(model, digits, epochs, seed, progress)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(
    model: nn.Module, digits: Digits, epochs: int, seed: int, progress: Callable[[str], None]
) -> nn.Module:
    steps = epochs * (len(digits.images) // _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        batch = torch.randint(len(digits.images), (_BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(model(digits.images[batch]), digits.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            progress(f"training, step {step} of {steps}, loss {loss.item():.3f}")
    return model.eval()


def accuracy(model: nn.Module, digits: Digits, batch: int = 100) -> float:
    """The share of the test images whose largest logit is the right one's."""
    with torch.no_grad():
        guesses = [model(images).argmax(1) for images in digits.test_images.split(batch)]
    return (torch.cat(guesses) == digits.test_labels).float().mean().item()
