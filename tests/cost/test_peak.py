"""The measured peak of arithmetic."""

import torch

from fxopt.cost import Roofline, find_target, peak_products


def test_the_peak_is_that_of_this_machine_and_measured_once():
    target = find_target("cpu")
    peak = peak_products(target.threads)
    assert peak_products(target.threads) == peak
    assert 0.1 < peak / Roofline.of(target).products < 10  # what it is elsewhere, by and large


def test_it_is_of_float32_on_the_cpu_whatever_the_user_has_set(monkeypatch):
    multiply, given = torch.mm, []

    def mm(*factors):
        given.extend((factor.dtype, factor.device.type) for factor in factors)
        return multiply(*factors)

    monkeypatch.setattr(torch, "mm", mm)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        peak_products.__wrapped__(torch.get_num_threads())
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert set(given) == {(torch.float32, "cpu")}
    assert torch.is_grad_enabled()
