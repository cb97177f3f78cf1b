"""Linear layers that are not worth rounding: they save no time, and cost quality all the same.

Such is the classifier behind the last layer norm of a transformer: what it takes is in float and
rounded for it alone, and beside the layers before it its arithmetic is nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import fx, nn

from fxopt.plugin import Program, example_size
from fxopt_quantize.rules import Role, operands, role_of
from fxopt_quantize.sensitivity import PRODUCTS_A_VALUE


def worthless(program: Program, layers: Sequence[fx.Node], least: float) -> dict[fx.Node, str]:
    """Layers that take floats and together save less than a share of the time.

    The smallest go first; those of one size all stay in float, or none.

    Args:
        program: In float.
        layers: All that could compute in int8.
        least: The share.

    Returns:
        The layers, with the reason.
    """
    costs: Counter[str] = Counter()
    for node in layers:
        costs[str(node.target)] += _cost(program, node)
    takers = [node for node in layers if _takes_floats(program, node)]
    names = {str(node.target) for node in takers}
    largest = _largest([costs[name] for name in names], least * costs.total())
    reason = f"saves less than {least:.2g} of the time"
    return {node: reason for node in takers if costs[str(node.target)] <= largest}


def _largest(costs: Sequence[int], bound: float) -> int:
    """The largest cost such that all up to it sum up to less than a bound; 0 if there is none."""
    total = largest = 0
    for cost, count in sorted(Counter(costs).items()):
        total += cost * count
        if total >= bound:
            break
        largest = cost
    return largest


def _cost(program: Program, node: fx.Node) -> int:
    """What a call computes and moves, weights included, as a number of multiply-adds."""
    weight = program.leaf(node).weight
    assert isinstance(weight, torch.Tensor)
    given, yielded = example_size(node.all_input_nodes[0]), example_size(node)
    transposed = isinstance(program.leaf(node), nn.modules.conv._ConvTransposeNd)
    products = (given if transposed else yielded) * weight[0].numel()
    return products + PRODUCTS_A_VALUE * (given + weight.numel() + yielded)


def _takes_floats(program: Program, node: fx.Node) -> bool:
    """Whether a linear layer's input is computed in float, and rounded for this layer alone."""
    if not isinstance(program.leaf(node), nn.Linear):
        return False
    source = node.all_input_nodes[0]
    while role_of(program, source) is Role.PASS and operands(source) and len(source.users) == 1:
        source = operands(source)[0]
    return role_of(program, source) is Role.FLOAT and len(source.users) == 1
