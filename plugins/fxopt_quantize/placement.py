"""Where activations are rounded: derived from the roles in one sweep from the outputs back.

The rules:

1. A layer takes its input in int8. What takes a value that was all zero in calibration stays in
   float: nothing tells its range.
2. A sum, product or average takes its inputs in int8 if its result, activated or not, is taken in
   int8 by all that matters: some later int8 operation; and if an int8 layer yields one of them,
   activated, moved or combined with others since. So residual sums between convolutions run in
   int8, and those between layer norms, which are float, keep their precision. So do sums of what
   was scaled in float (ConvNeXt's): to round it first would add an error, and spare nothing.
3. Rounding moves up through operations that only pass values on, as long as everything behind
   them takes int8; one rounding then serves them all, and pooling and slicing run on bytes.
4. What is joined shares one scale, so that joining needs no arithmetic.
5. An activation belongs to the operation before it; the rounding comes after it.
6. Where zero is the middle of the range, convolutions need no correction for a zero point and
   use their fastest kernels; so signed values have it there, unless only linear layers take them.
7. Attention takes queries and keys in int8 if they come from int8 layers; what is computed between
   them and the layer (a rotation, say) keeps it in float. Values meet probabilities, which stay in
   float, so rounding them gains nothing; but where one layer yields all three, one rounding of its
   result serves them all. A mask is never rounded.
8. The input of a depthwise convolution, where nothing else uses it, may have a scale per channel,
   unless it is without a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_quantize.channels import channel_axis
from fxopt_quantize.rules import Role, holds_floats, operands, role_of


@dataclass
class Site:
    """A value that is rounded.

    Attributes:
        value: The node that yields it.
        takers: The users that take it rounded; others take it as it is.
        group: Sites with one number share one scale.
        linear: Whether linear layers alone take it in int8.
        symmetric: Whether zero should be the middle of the range if there are negative values.
        per_channel: Whether each channel may have its own scale.
    """

    value: fx.Node
    takers: list[fx.Node]
    group: int
    linear: bool = False
    symmetric: bool = True
    per_channel: bool = False


@dataclass
class Placement:
    """What is quantized.

    Attributes:
        layers: Nodes whose weights are.
        sites: Values that are, in the order of the graph.
    """

    layers: list[fx.Node] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)


def place(program: Program, layers: list[fx.Node], floats: Collection[fx.Node] = ()) -> Placement:
    """Applies the rules to ``program``.

    Args:
        program: It is not changed.
        layers: The nodes of role LAYER that are to compute in int8.
        floats: Other operations that are to stay in float, whatever the rules say.
    """
    return Placement(layers, list(_Sweep(program, layers, floats).sites()))


class _Sweep:
    def __init__(
        self, program: Program, layers: list[fx.Node], floats: Collection[fx.Node]
    ) -> None:
        self._program = program
        self._nodes = program.nodes
        self._floats = floats
        self._roles = {node: role_of(program, node) for node in self._nodes}
        self._int8: set[fx.Node] = set(layers)  # operations that compute in int8
        self._wanted: set[fx.Node] = set()  # values that some int8 operation takes
        self._fully: set[fx.Node] = set()  # passing values that all users take in int8
        self._int8.update(node for node in self._nodes if self._attends(node))
        self._yielded = self._yielded_by(self._int8)
        for node in reversed(self._nodes):
            self._visit(node)

    def sites(self) -> Iterator[Site]:
        groups = _Groups(self._nodes)
        for node in self._nodes:
            if self._passes(node) and self._pushed(node):
                for source in operands(node):
                    groups.join(source, node)
        for node in self._nodes:
            takers = [user for user in node.users if self._takes(user, node)]
            linear = all(self._is_linear(taker) for taker in takers)
            if takers and holds_floats(node) and not self._pushed(node):
                yield Site(
                    value=node,
                    takers=takers,
                    group=groups.number(node),
                    linear=linear,
                    symmetric=not linear,
                    per_channel=all(self._separates(taker, node) for taker in takers),
                )

    def _visit(self, node: fx.Node) -> None:
        users = [user for user in node.users if not _is_size(user)]
        if any(self._wants(user, node) for user in users):
            self._wanted.add(node)
        if self._passes(node) and users and all(self._serves(user, node) for user in users):
            self._fully.add(node)
        if self._may_combine(node) and node in self._yielded and self._result_wanted(node):
            self._int8.add(node)

    def _yielded_by(self, int8: Collection[fx.Node]) -> set[fx.Node]:
        """What int8 operations yield, and what that is activated, moved or combined to."""
        found = set(int8)
        for node in self._nodes:
            kept = self._passes(node) or self._roles[node] is Role.ACTIVATE
            if (kept or self._may_combine(node)) and not found.isdisjoint(operands(node)):
                found.add(node)
        return found

    def _may_combine(self, node: fx.Node) -> bool:
        combines = self._roles[node] is Role.COMBINE and node not in self._floats
        return combines and _combines(node)

    def _wants(self, user: fx.Node, value: fx.Node) -> bool:
        """Whether ``user``, or something behind it, computes in int8 with ``value``."""
        reached = user in self._int8 or (self._passes(user) and user in self._wanted)
        return reached and value in self._taken(user)

    def _takes(self, user: fx.Node, value: fx.Node) -> bool:
        """Whether ``user`` is given the rounded ``value``."""
        return (user in self._int8 or self._pushed(user)) and value in self._taken(user)

    def _serves(self, user: fx.Node, value: fx.Node) -> bool:
        """Whether rounding what ``value`` was made of leaves nothing for ``user`` to ask for."""
        return user in self._fully if _is_tuple(value) else self._takes(user, value)

    def _attends(self, node: fx.Node) -> bool:
        attends = self._roles[node] is Role.ATTEND and node not in self._floats
        if not attends or len(operands(node)) != 3:
            return False
        return all(self._origin(source) in self._int8 for source in self._taken(node))

    def _taken(self, node: fx.Node) -> list[fx.Node]:
        """The inputs that a node takes in int8: of attention, values only beside their kin."""
        sources = operands(node)
        if self._roles[node] is Role.ATTEND and len({self._origin(each) for each in sources}) > 1:
            return sources[:2]
        return sources

    def _origin(self, node: fx.Node) -> fx.Node:
        """What computed a value that has only been moved since."""
        while self._roles[node] is Role.PASS and operands(node):
            node = operands(node)[0]
        return node

    def _pushed(self, node: fx.Node) -> bool:
        """Whether rounding its inputs replaces rounding this value."""
        whole = node in self._fully
        if whole and isinstance(node.args[0], fx.Node) and _is_tuple(node.args[0]):
            return node.args[0] in self._fully
        return whole

    def _passes(self, node: fx.Node) -> bool:
        return self._roles[node] in (Role.PASS, Role.JOIN) and bool(operands(node))

    def _result_wanted(self, node: fx.Node) -> bool:
        if node in self._wanted:
            return True
        users = list(node.users)
        activated = len(users) == 1 and self._roles[users[0]] is Role.ACTIVATE
        return activated and self._result_wanted(users[0])

    def _separates(self, taker: fx.Node, value: fx.Node) -> bool:
        """Whether a depthwise convolution takes a value that has its channels in dimension 1."""
        if not is_depthwise(self._program, taker):
            return False
        weight = self._program.leaf(taker).get_parameter("weight")
        return channel_axis(weight, value.meta["val"]) == 1

    def _is_linear(self, taker: fx.Node) -> bool:
        """Whether the int8 operations behind ``taker`` are linear layers, and nothing else."""
        if self._passes(taker):
            return all(self._is_linear(user) for user in taker.users if not _is_size(user))
        return taker.op == "call_module" and isinstance(self._program.leaf(taker), nn.Linear)


class _Groups:
    """Union-find over nodes."""

    def __init__(self, nodes: list[fx.Node]) -> None:
        self._order = {node: index for index, node in enumerate(nodes)}
        self._parents = dict.fromkeys(nodes)

    def join(self, one: fx.Node, other: fx.Node) -> None:
        first, second = sorted((self._root(one), self._root(other)), key=self._order.__getitem__)
        if first is not second:
            self._parents[second] = first

    def number(self, node: fx.Node) -> int:
        return self._order[self._root(node)]

    def _root(self, node: fx.Node) -> fx.Node:
        while (parent := self._parents[node]) is not None:
            node = parent
        return node


def is_depthwise(program: Program, node: fx.Node) -> bool:
    """Whether a node is a convolution in which every input channel has its own filters."""
    leaf = program.leaf(node) if node.op == "call_module" else None
    if not isinstance(leaf, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return False
    return leaf.groups == leaf.in_channels > 1


def _combines(node: fx.Node) -> bool:
    """Whether all its tensor inputs are activations: a sum with a constant stays in float."""
    sources = operands(node)
    tensors = all(holds_floats(arg) for arg in node.all_input_nodes if not _is_scalar(arg))
    binary = node.target in _BINARY
    two = len(node.args) > 1 and all(isinstance(arg, fx.Node) for arg in node.args[:2])
    computed = all(source.op != "get_attr" for source in sources)
    return bool(sources) and tensors and computed and (two or not binary)


_BINARY = {
    torch.ops.aten.add.Tensor,
    torch.ops.aten.sub.Tensor,
    torch.ops.aten.mul.Tensor,
}


def _is_scalar(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), torch.Tensor)


def _is_tuple(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


def _is_size(user: fx.Node) -> bool:
    return user.target is torch.ops.aten.sym_size.int
