"""Quantizes a model to int8, on calibration data, within a limit on what quality may be lost.

python examples/int8.py
"""

import torch
from torch import nn

import fxopt
from fxopt.demo import DigitNet, accuracy, load_digits, train


def main() -> None:
    digits = load_digits()
    torch.manual_seed(0)
    few = type(digits)(
        digits.images[:1500], digits.labels[:1500], digits.test_images, digits.test_labels
    )
    model = train(DigitNet(width=16), few, epochs=2)

    def evaluate(module: nn.Module) -> float:
        return accuracy(module, digits)

    fast = fxopt.optimize(
        model,
        (digits.images[:8],),
        passes="cleanup,fold_bn,quantize",
        calibration=digits.images[:256].split(32),  # any iterable of batches, without labels
        evaluate=evaluate,  # higher is better
        max_drop=0.01,  # a pass that costs more than a point is rolled back
        time_limit=15,  # seconds; what was found by then counts
    )

    print(fast.report)
    print(f"accuracy {evaluate(model):.3f} -> {evaluate(fast):.3f}")
    assert evaluate(fast) >= evaluate(model) - 0.01


if __name__ == "__main__":
    main()
