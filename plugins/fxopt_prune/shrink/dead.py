"""Units of which nothing but zeros ever gets anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_prune.channels import Structure
from fxopt_prune.channels.atoms import FIXED, Labels
from fxopt_prune.channels.trace import Value

Constants = npt.NDArray[np.float64]
"""The number that each position along a dimension consists of; NaN where it is not always one."""

aten = torch.ops.aten

# Both signs, since many functions are zero for one, and sizes beyond where any of them is flat.
_SCALES = (1.0, -1.0, 8.0, -8.0, 1e3, -1e3)

# Of random numbers: how many there are, and how far apart those begin that are drawn in turns.
# Both are primes: no two tensors of a call come to hold the same numbers at the same places.
_DRAWN, _STEP = 4_194_301, 611_953
_IN_POOL = (torch.float32, torch.bfloat16, torch.float16)

_ADD = {aten.add.Tensor, aten.cat.default}
_MOVE = {aten.expand.default, aten.unsqueeze.default, aten.view.default, aten.reshape.default}


def may_be_zero(program: Program) -> bool:
    """Whether some weight multiplies by nothing but zeros, without which hardly a unit is zero.

    Looking at the weights alone takes a twentieth of the time of running each call. What is zero
    without such a weight, since a constant of the code multiplies it, is not looked for.
    """
    module = program.module
    tables = {id(program.leaf(node).weight) for node in program.find(nn.Embedding)}
    reads = [node for node in program.nodes if node.op == "get_attr"]
    added = {str(n.target) for n in reads} - {str(n.target) for n in reads if not _is_added(n)}
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return any(
        _holds_zeros(name, weight, id(weight) in tables)
        for name, weight in named.items()
        if name not in added
    )


def _is_added(node: fx.Node) -> bool:
    """Whether nothing is done with a value but to add it, or to put it beside others.

    Class tokens of transformers are zero before they are trained, for one.
    """
    return all(
        user.target in _ADD or (user.target in _MOVE and _is_added(user)) for user in node.users
    )


def _holds_zeros(name: str, weight: torch.Tensor, is_table: bool) -> bool:
    """Whether a slice of a weight is zero; of what is added, and of a row to look up, no matter."""
    if not weight.is_floating_point() or weight.dim() == 0:
        return False
    if weight.dim() == 1:
        return not name.endswith("bias") and not bool(weight.all())
    kept = weight.detach() != 0
    slices = (kept.movedim(dim, 0).flatten(1) for dim in range(int(is_table), weight.dim()))
    return any(not bool(each.any(1).all()) for each in slices)


def rows_to_run(program: Program, structure: Structure, captured: int, few: int) -> int:
    """With how many rows of a batch :func:`zero_units` can do: ``few`` where that is possible.

    There are labels for as many rows as were captured. Where units and rows make one dimension, as
    in attention that takes rows and heads for one, each row has to have the same ones.

    Args:
        program: The program.
        structure: What was found in it.
        captured: Rows that the program was captured with.
        few: Rows that would be enough.
    """
    spread = [
        units
        for node, labels in structure.trace.values.items()
        for part, its in _parts(node.meta.get("val"), labels)
        for dim, units in _along(structure, its)
        if isinstance(part.shape[dim], torch.SymInt)
    ]
    alike = captured % few == 0 and all(
        _of_fewer_rows(units, len(units) * few // captured) is not None for units in spread
    )
    return few if alike or not spread else captured


def _of_fewer_rows(units: Labels, count: int) -> Labels | None:
    """Those along the first ``count`` positions, as they are where there are no others.

    Rows may come before what is within each of them, or behind it; None where they differ.
    """
    if count == 0 or len(units) % count:
        return None
    times = len(units) // count
    for fewer, whole in (
        (units[:count], np.tile(units[:count], times)),
        (units[::times], np.repeat(units[::times], times)),
    ):
        if np.array_equal(whole, units):
            return fewer
    return None


def zero_units(program: Program, structure: Structure, inputs: Sequence[Any]) -> list[int]:
    """The units that are zero wherever something is computed from them, whatever comes in.

    Each call is looked at on its own, with random numbers for what it takes, but constants where
    the calls before have been seen to make them, one for each position: what then comes out as one
    number, whatever is drawn, is constant for any input. A channel may be shifted by a norm and cut
    off by an activation, a gate of one half may multiply zeros; what counts is what gets to sums
    over the units.

    Args:
        program: The program.
        structure: What was found in it.
        inputs: Flat inputs of any values, of the sizes that the program was captured with, but
            for the number of rows, see :func:`rows_to_run`.

    Returns:
        Units of groups where removal does the same as zeros.
    """
    units = {int(unit) for group in structure.groups if group.exact for unit in group.units}
    if not units:
        return []
    probe = _Probe(program, structure)
    with torch.no_grad():
        probe.run(*inputs)
    return sorted(units - probe.matter)


class _Probe(fx.Interpreter):
    """Runs each call some times more, on numbers of its own.

    Attributes:
        constants: Of each node, by part and dimension.
        matter: Units of which something is computed where they are not zero.
    """

    def __init__(self, program: Program, structure: Structure) -> None:
        super().__init__(program.module)
        self._structure = structure
        self._random = _Numbers()
        self.constants: dict[fx.Node, dict[tuple[int, int], Constants]] = {}
        self.matter: set[int] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op not in ("placeholder", "output"):  # of which nothing goes
            self._look_at(n)
        return result

    def _look_at(self, node: fx.Node) -> None:
        """Finds what is constant in its value, and what of its arguments matters: is summed up."""
        found = {each: self.env[each] for each in node.all_input_nodes}
        agreed: dict[tuple[int, int], Constants] = {}
        stays = set[int]()
        for scale in _SCALES:
            self.env.update({each: self._own(each, value, scale) for each, value in found.items()})
            for place, part, units in self._places(node, super().run_node(node)):
                drawn = _constants(part, place[1])
                agreed[place] = _agreed(agreed.get(place, drawn), drawn)
                stays.update(units.tolist())
            if all(np.isnan(each).all() for each in agreed.values()):
                break  # as nearly always: no further draw could bring a constant back
        self.env.update(found)
        self.constants[node] = agreed
        for each, value in found.items():
            self.matter |= self._not_zero(each, value) - stays

    def _own(self, node: fx.Node, value: Any, scale: float) -> Any:
        """Random numbers, and constants where they are known."""
        drawn: dict[int, torch.Tensor] = {}
        for part, _ in _parts(value, self._structure.trace.values[node]):
            drawn[id(part)] = self._random.draw(part, scale)
        for place, part, _ in self._places(node, value):
            known = self._known(node, place, part)
            for position in np.flatnonzero(~np.isnan(known)):
                drawn[id(part)].select(place[1], int(position)).fill_(known[position])
        return _replaced(value, drawn)

    def _known(self, node: fx.Node, place: tuple[int, int], part: torch.Tensor) -> Constants:
        unknown = np.full(part.shape[place[1]], np.nan)
        return self.constants.get(node, {}).get(place, unknown)

    def _not_zero(self, node: fx.Node, value: Any) -> set[int]:
        found = set[int]()
        for place, part, units in self._places(node, value):
            found.update(units[self._known(node, place, part) != 0].tolist())
        return found - {FIXED}

    def _places(
        self, node: fx.Node, value: Any
    ) -> Iterator[tuple[tuple[int, int], torch.Tensor, Labels]]:
        """The dimensions with units: which part and dimension, the part, and the units."""
        for number, (part, labels) in enumerate(_parts(value, self._structure.trace.values[node])):
            for dim, units in _along(self._structure, labels):
                own = _of_fewer_rows(units, part.shape[dim])
                assert own is not None  # rows_to_run has seen to it
                yield (number, dim), part, own


class _Numbers:
    """Random numbers, drawn once: what is asked for begins each time at another one of them.

    Drawing them anew took longer than the calls that they are for.
    """

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._drawn = torch.randn(_DRAWN, generator=self._generator)
        self._start = 0

    def draw(self, like: torch.Tensor, scale: float) -> torch.Tensor:
        """Numbers of the shape, dtype and device of another tensor."""
        count = like.numel()
        if count > _DRAWN // 2 or like.dtype not in _IN_POOL:
            numbers = torch.randn(like.shape, dtype=like.dtype, generator=self._generator)
            return (scale * numbers).to(like.device)
        self._start = (self._start + _STEP) % (_DRAWN - count)
        numbers = self._drawn.narrow(0, self._start, count).reshape(like.shape)
        return (scale * numbers).to(like.device, like.dtype)


def _along(structure: Structure, labels: Value) -> Iterator[tuple[int, Labels]]:
    """The dimensions with units, and these, position by position."""
    for dim, each in enumerate(labels if isinstance(labels, tuple) else ()):
        units = structure.classes.of_atom[each]
        if (units != FIXED).any():
            yield dim, units


def _parts(value: Any, labels: Value) -> Iterator[tuple[torch.Tensor, Value]]:
    """The numbers in a value, with their labels."""
    if isinstance(value, (tuple, list)) and isinstance(labels, list):
        for one, its in zip(value, labels, strict=True):
            yield from _parts(one, its)
    elif isinstance(value, torch.Tensor) and value.is_floating_point():
        yield value, labels


def _constants(part: torch.Tensor, dim: int) -> Constants:
    """Position by position, the number that it consists of."""
    rows = part.movedim(dim, 0).flatten(1) if part.dim() > 1 else part[:, None]
    same = (rows == rows[:, :1]).all(1)
    return np.where(same.cpu().numpy(), rows[:, 0].double().cpu().numpy(), np.nan)


def _agreed(one: Constants, other: Constants) -> Constants:
    """Those that are the same in both draws."""
    return np.where(one == other, one, np.nan)


def _replaced(value: Any, new: dict[int, torch.Tensor]) -> Any:
    """A value with other tensors in the place of some, by their identity."""
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(each, new) for each in value)
    return new.get(id(value), value)
