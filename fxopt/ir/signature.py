"""How the user's nested inputs and outputs map to the flat ones of a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from fxopt.errors import InputError


@dataclass(frozen=True)
class Signature:
    """The calling convention of a program.

    Attributes:
        in_spec: Tree of ``(args, kwargs)``; its leaves are the placeholders, in order.
        out_spec: Tree of what the user's model returns; its leaves are the outputs, in order.
        batch: Whether dimension 0 of the inputs is a symbolic batch; if not, sizes are fixed.
    """

    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    batch: bool

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The flat inputs of a call, in the order of the placeholders.

        Raises:
            InputError: The call has another structure than the one captured.
        """
        flat, spec = pytree.tree_flatten((args, self._in_order(kwargs)))
        if spec != self.in_spec:
            raise InputError(
                "the inputs have another structure than at capture",
                where=f"expected {self.in_spec}, got {spec}",
                hint="pass the same arguments, in the same nesting, as in example_inputs",
            )
        return flat

    def unflatten(self, outputs: Any) -> Any:
        """The user's nested output from the flat tuple of a program."""
        return pytree.tree_unflatten(list(outputs), self.out_spec)

    def _in_order(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        captured = self.in_spec.child(1).context or []
        if set(captured) != set(kwargs):
            return kwargs
        return {name: kwargs[name] for name in captured}
