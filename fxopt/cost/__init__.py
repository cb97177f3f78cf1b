"""What things cost: the target machine, measured latency, and counted arithmetic."""

from fxopt.cost.arithmetic import example_bytes, example_size, multiply_adds
from fxopt.cost.measure import Latency, fastest, measure
from fxopt.cost.memory import memory_left
from fxopt.cost.peak import peak_products
from fxopt.cost.roofline import Roofline
from fxopt.cost.target import Target, find_target

__all__ = [
    "Latency",
    "Roofline",
    "Target",
    "example_bytes",
    "example_size",
    "fastest",
    "find_target",
    "measure",
    "memory_left",
    "multiply_adds",
    "peak_products",
]
