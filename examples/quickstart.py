"""Makes a model faster without changing what it computes: only exact passes run.

python examples/quickstart.py
"""

import torch
import torchvision

import fxopt


def main() -> None:
    model = torchvision.models.squeezenet1_1().eval()  # your own trained model goes here
    image = torch.randn(1, 3, 64, 64)

    fast = fxopt.optimize(model, (image,))

    print(fast.report)
    batch = torch.randn(5, 3, 64, 64)  # any other batch size will do
    with torch.no_grad():
        expected = model(batch)
        error = ((fast(batch) - expected).norm() / expected.norm()).item()
    print(f"relative difference of the outputs: {error:.1e}")
    assert error < 1e-4


if __name__ == "__main__":
    main()
