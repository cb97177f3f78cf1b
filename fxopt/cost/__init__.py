"""What things cost: the target machine and measured latency."""

from fxopt.cost.measure import Latency, fastest, measure
from fxopt.cost.target import Target, find_target

__all__ = ["Latency", "Target", "fastest", "find_target", "measure"]
