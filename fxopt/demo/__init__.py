"""The demonstration: a small network that is trained here, then optimized for this machine."""

from fxopt.demo.digits import Digits, load_digits
from fxopt.demo.network import DigitNet
from fxopt.demo.train import accuracy, train

__all__ = ["Digits", "DigitNet", "accuracy", "load_digits", "train"]
