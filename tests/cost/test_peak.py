"""The measured peak of arithmetic."""

import torch

from fxopt.cost import Roofline, find_target, peak_products


def test_the_peak_is_that_of_this_machine_and_measured_once():
    target = find_target("cpu")
    peak = peak_products(target.threads)
    assert peak_products(target.threads) == peak
    assert 0.1 < peak / Roofline.of(target).products < 10  # what it is elsewhere, by and large


def test_it_leaves_gradients_alone():
    peak_products.__wrapped__(torch.get_num_threads())
    assert torch.is_grad_enabled()
