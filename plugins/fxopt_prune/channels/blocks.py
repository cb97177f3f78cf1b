"""A dimension that is several blocks behind one another: blocks go whole, or all lose the same."""

from __future__ import annotations

from fxopt_prune.channels.atoms import Labels
from fxopt_prune.channels.trace import Call


def couple_blocks(call: Call, count: int, *dimensions: Labels) -> None:
    """Lets each of the blocks go only as a whole, and with the same one of the other dimensions."""
    first = [labels.reshape(count, -1)[:, :1] for labels in dimensions]
    for labels, lead in zip(dimensions, first, strict=True):
        call.couple(labels.reshape(count, -1), lead)
        call.couple(lead, first[0])


def couple_columns(call: Call, count: int, *dimensions: Labels) -> None:
    """Lets a position go only where it goes in all of the blocks."""
    for labels in dimensions:
        blocks = labels.reshape(count, -1)
        call.couple(blocks, blocks[:1])
