"""Predicted latency: what bounds it, on which device."""

import pytest
import torch

from fxopt.cost import Roofline, Target, find_target

SIMPLE = Roofline(products=1000.0, bytes=100.0, call=0.5, lanes=8)


def test_arithmetic_or_memory_bounds_a_layer():
    assert SIMPLE.milliseconds(16, 500.0, 10.0) == 8.0 + 0.5
    assert SIMPLE.milliseconds(16, 1.0, 400.0) == 4.0 + 0.5


def test_few_outputs_take_as_long_as_all_lanes():
    full = SIMPLE.milliseconds(8, 500.0, 1.0)
    assert SIMPLE.milliseconds(1, 500.0, 1.0) == SIMPLE.milliseconds(5, 500.0, 1.0) == full
    assert SIMPLE.milliseconds(9, 500.0, 1.0) == SIMPLE.milliseconds(16, 500.0, 1.0) > full


def test_targets_differ_as_their_hardware_does():
    def of(name, threads, *features):
        return Roofline.of(Target(name, torch.device(name), threads, features))

    one, two = of("cpu", 1, "avx2", "avx512f"), of("cpu", 2, "avx2", "avx512f")
    assert (two.products, two.bytes, two.call) == (2 * one.products, 2 * one.bytes, one.call)
    plain, avx2 = of("cpu", 1), of("cpu", 1, "avx2")
    assert plain.products < avx2.products < one.products
    assert avx2.lanes < one.lanes
    a100, h100 = of("cuda", 1, "sm_80"), of("cuda", 1, "sm_90")
    assert a100.products < h100.products
    assert of("cuda", 1, "sm_120") == a100  # not known: as a smaller one
    assert Roofline.of(find_target("cpu")).products > 0


@pytest.mark.parametrize("threads", [1, 4])
def test_a_large_product_is_predicted_by_its_arithmetic(threads):
    """512 rows through 1024x1024 weights: arithmetic outweighs memory on any target."""
    target = Target("cpu", torch.device("cpu"), threads, ("avx512f",))
    roofline = Roofline.of(target)
    products, moved = 512 * 1024 * 1024, 4 * (2 * 512 * 1024 + 1024 * 1024)
    predicted = roofline.milliseconds(1024, products / 1024, moved)
    assert predicted == pytest.approx(products / roofline.products + roofline.call)
