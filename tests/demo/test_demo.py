import pytest
import torch

from fxopt.demo import DigitNet, Digits, accuracy, load_digits, train


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_split_is_seeded_and_holds_images_out(digits):
    again, other = load_digits(), load_digits(seed=1)
    assert torch.equal(digits.test_images, again.test_images)
    assert not torch.equal(digits.test_images, other.test_images)
    assert (len(digits.images), len(digits.test_images)) == (4000, 1000)
    seen = {image.numpy().tobytes() for image in digits.images}
    doubles = [image for image in digits.test_images if image.numpy().tobytes() in seen]
    assert len(doubles) < 5  # the data set itself may hold an image twice
    assert sorted(digits.test_labels.unique().tolist()) == list(range(10))


def test_training_learns_and_is_repeatable(digits):
    few = Digits(
        digits.images[:500], digits.labels[:500], digits.test_images[:200], digits.test_labels[:200]
    )
    scores = []
    for _ in range(2):
        torch.manual_seed(0)
        scores.append(accuracy(train(DigitNet(width=8), few, epochs=8), few))
    assert scores[0] == scores[1]
    assert scores[0] > 0.5  # a guess has 0.1


def test_training_leaves_the_number_of_threads(digits):
    threads = torch.get_num_threads()
    few = Digits(digits.images[:50], digits.labels[:50], digits.test_images, digits.test_labels)
    train(DigitNet(width=2), few, epochs=2)
    assert torch.get_num_threads() == threads


def test_accuracy_counts():
    class Always3(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(torch.full((len(x),), 3), 10)

    digits = load_digits()
    share = (digits.test_labels == 3).float().mean().item()
    assert accuracy(Always3(), digits, batch=64) == pytest.approx(share)
