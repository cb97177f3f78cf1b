"""What a pass reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        changed: Whether the program is another one than before. The manager checks it.
        nodes_before: Nodes in the graph when the pass began.
        nodes_after: Nodes in the graph when it ended.
        summary: What was done, in a few words, for the report.
        rewrites: One entry per rewrite, with the source line that it concerns.
        refused: One entry per candidate left as it was, with the reason.
        details: Numbers and texts for the machine-readable report.
    """

    changed: bool
    nodes_before: int = 0
    nodes_after: int = 0
    summary: str = ""
    rewrites: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
