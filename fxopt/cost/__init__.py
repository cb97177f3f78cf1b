"""What things cost: the target machine, measured latency, and counted arithmetic."""

from fxopt.cost.arithmetic import batch_scale, example_bytes, example_size, multiply_adds
from fxopt.cost.idle import wait_until_idle
from fxopt.cost.lead import NO_MATTER
from fxopt.cost.measure import Latency, fastest, measure, race_in_turns, take_turn
from fxopt.cost.memory import memory_left
from fxopt.cost.peak import peak_products
from fxopt.cost.roofline import Roofline
from fxopt.cost.target import Target, find_target

__all__ = [
    "NO_MATTER",
    "Latency",
    "Roofline",
    "Target",
    "batch_scale",
    "example_bytes",
    "example_size",
    "fastest",
    "find_target",
    "measure",
    "memory_left",
    "multiply_adds",
    "peak_products",
    "race_in_turns",
    "take_turn",
    "wait_until_idle",
]
