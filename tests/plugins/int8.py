"""Int8 layers for the tests of what runs them."""

from fxopt.cost import find_target
from fxopt_quantize.formats import safe
from fxopt_quantize.modules import QuantConv, QuantLinear
from fxopt_quantize.weights import quantize_weight

_FORMAT = safe(find_target("cpu"))


def qconv(conv):
    return QuantConv(conv, quantize_weight(conv.weight, 0, _FORMAT))


def qlinear(linear):
    return QuantLinear(quantize_weight(linear.weight, 0, _FORMAT), linear.bias)
