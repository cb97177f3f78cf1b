"""Whether a dimension numbers attention heads: a mark on it gets to where matrices are multiplied.

Nobody has to say how many heads there are: they are what products of activations are repeated over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from fxopt_prune.channels.atoms import fixed, is_free
from fxopt_prune.channels.trace import Call, Dims, Trace, Value, fixed_value, label

_FAR = 40  # nodes behind a split; an attention block has fewer


class _Marks(Trace):
    """A walk on which one dimension is marked."""

    marking = True

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace.program, trace.rule_of)
        self.found = False

    def heads(self, dims: Dims) -> None:
        """Whether the mark got here."""
        self.found |= any(map(is_free, dims))


def leads_to_heads(call: Call, dim: int, rank: int) -> bool:
    """Whether what ``call`` yields has attention heads along ``dim``."""
    marks = _Marks(call.trace)
    mark = marks.atoms.fresh(2)[0]
    sizes = call.sizes
    marked = [np.full(sizes[i], mark) if i == dim else fixed(sizes[i]) for i in range(rank)]
    marks.values[call.node] = tuple(marked)
    for node in _behind(call.node):
        if _reached(marks, node.all_input_nodes):
            for argument in node.all_input_nodes:
                marks.values.setdefault(argument, fixed_value(argument.meta.get("val")))
            marks.values[node] = label(marks, node)
        if marks.found:
            return True
    return False


def _behind(node: fx.Node) -> list[fx.Node]:
    """The nodes after one that have no weights, as far as they can matter."""
    found: list[fx.Node] = []
    after = node.next
    while len(found) < _FAR and after.op != "output":
        if after.op == "call_function":
            found.append(after)
        after = after.next
    return found


def _reached(marks: Trace, arguments: Sequence[fx.Node]) -> bool:
    return any(_marked(marks.values.get(argument)) for argument in arguments)


def _marked(value: Value) -> bool:
    if isinstance(value, list):
        return any(map(_marked, value))
    return value is not None and any(map(is_free, value))
