"""The one matcher: for each batch norm a fold, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxopt.plugin import Program
from fxopt_fold_bn.arithmetic import State, with_norm_after, with_norm_before
from fxopt_fold_bn.layers import (
    TRANSPOSED,
    batch_norms,
    channels_are_dim_1,
    is_layer,
    pads_with_other_values,
    taps_differ,
)


@dataclass(frozen=True)
class Fold:
    """A batch norm that can go.

    Attributes:
        norm: The call of the batch norm.
        source: What it normalises.
        after: Whether it follows its layer; if not, it precedes all of ``layers``.
        layers: The calls that absorb it, each with the state that its module then has.
    """

    norm: fx.Node
    source: fx.Node
    after: bool
    layers: tuple[tuple[fx.Node, State], ...]


@dataclass(frozen=True)
class Refusal:
    """A batch norm that has to stay, and why."""

    reason: str


def match(program: Program, norm: fx.Node) -> Fold | Refusal:
    """Whether the batch norm that ``norm`` calls can be folded, on the program as it is now."""
    leaf: Any = program.leaf(norm)
    if leaf.training:
        return Refusal("is in training mode")
    if leaf.running_mean is None or leaf.running_var is None:
        return Refusal("has no running statistics")
    source = norm.args[0] if norm.args else norm.kwargs.get("input")
    assert isinstance(source, fx.Node)
    if is_layer(program, source):
        back = _fold_back(program, norm, source)
        if isinstance(back, Fold):
            return back
        forward = _fold_forward(program, norm, source)
        return forward if isinstance(forward, Fold) else back
    return _fold_forward(program, norm, source)


def unfolded(program: Program) -> Iterator[str]:
    """A line per batch norm that could be folded."""
    for norm in batch_norms(program):
        found = match(program, norm)
        if isinstance(found, Fold):
            names = ", ".join(f"%{layer.name}" for layer, _ in found.layers)
            yield f"%{norm.name} could be folded into {names}"


def _fold_back(program: Program, norm: fx.Node, layer: fx.Node) -> Fold | Refusal:
    others = len(layer.users) - 1
    if others:
        return Refusal(
            f"%{layer.name} has {others} other user{'s' * (others > 1)}, "
            "so that a folded copy would compute it twice"
        )
    if not channels_are_dim_1(program, layer):
        return Refusal(_other_dimension(program, layer))
    state = with_norm_after(program.leaf(layer), program.leaf(norm))
    return _fold(program, norm, layer, [(layer, state)])


def _fold_forward(program: Program, norm: fx.Node, source: fx.Node) -> Fold | Refusal:
    """Into all that use the batch norm: if one of them cannot, it is computed anyway."""
    states = []
    for user in norm.users:
        reason = _obstacle(program, norm, user, source)
        if reason is not None:
            return Refusal(reason)
        states.append((user, with_norm_before(program.leaf(user), program.leaf(norm))))
    return _fold(program, norm, source, states)


def _obstacle(program: Program, norm: fx.Node, user: fx.Node, source: fx.Node) -> str | None:
    """Why a batch norm cannot be folded into ``user``, which comes after it."""
    if not is_layer(program, user) or not user.args or user.args[0] is not norm:
        between = f"{_what(program, source)} and {_what(program, user)}"
        return f"it is between {between}, not beside a convolution or linear layer"
    leaf = program.leaf(user)
    if norm.meta["val"].dim() != user.meta["val"].dim() or not channels_are_dim_1(program, user):
        return _other_dimension(program, user)
    if isinstance(leaf, TRANSPOSED) and taps_differ(leaf):
        return f"the outputs of %{user.name} after it see different numbers of taps"
    if not isinstance(leaf, (*TRANSPOSED, nn.Linear)) and pads_with_other_values(leaf):
        return f"%{user.name} after it pads with zeros, which a batch norm does not yield"
    return None


def _fold(
    program: Program,
    norm: fx.Node,
    source: fx.Node,
    layers: list[tuple[fx.Node, State]],
) -> Fold | Refusal:
    for layer, state in layers:
        if layer.meta["val"].dtype != norm.meta["val"].dtype:
            return Refusal(f"its dtype is not that of %{layer.name}")
        if not state.finite:
            dtype = str(state.weight.dtype).removeprefix("torch.")
            return Refusal(f"the weights of %{layer.name} would not be finite in {dtype}")
    after = layers[0][0] is source
    return Fold(norm, source, after, tuple(layers))


def _other_dimension(program: Program, layer: fx.Node) -> str:
    kind = type(program.leaf(layer)).__name__
    rank = layer.meta["val"].dim()
    return f"it normalises dimension 1, and the channels of the {kind} %{layer.name} are " + (
        f"dimension {rank - 1} of {rank}" if kind == "Linear" else "dimension 0: it has no batch"
    )


def _what(program: Program, node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"the input %{node.name}"
    if node.op == "output":
        return "the output"
    if node.op == "call_module":
        return f"{type(program.leaf(node)).__name__} %{node.name}"
    target = node.target
    return f"{getattr(target, '__name__', target)} %{node.name}"
