"""Reading chains of calls backwards."""

from __future__ import annotations

from typing import Any

from torch import fx


def first_argument(node: Any, targets: tuple[Any, ...], *others: Any) -> Any:
    """The first argument of a call of one of some functions; None for anything else.

    Args:
        node: An argument of another call.
        targets: The functions.
        others: What the arguments after the first have to be, where that matters.
    """
    if not isinstance(node, fx.Node) or node.target not in targets:
        return None
    return node.args[0] if not others or tuple(node.args[1:]) == others else None
