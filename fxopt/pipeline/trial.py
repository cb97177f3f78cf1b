"""One attempt to run a pass: what it works on, and what is found out about it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from fxopt.analysis import Analyses
from fxopt.cost.arithmetic import multiply_adds
from fxopt.ir import PassResult, Program
from fxopt.passes import Context, Exact, Pass, format_pass
from fxopt.pipeline.numbers import Outputs
from fxopt.report import PassRecord, Status


@dataclass
class Trial:
    """One attempt to run a pass.

    Attributes:
        item: The pass.
        before: The program as it was.
        context: What the pass is told; its own to change.
        analyses: The pass's own cache of analyses, begun with what is known of ``before``.
        candidate: The copy of ``before`` that the pass changes; None until it is made.
        result: What the pass returned.
        outputs: What ``candidate`` computes on the examples.
        status: How it ended.
        reason: Why it ended so.
        error: Relative output error against ``before``.
        drift: Relative output error against the original program.
        score: What ``evaluate`` says.
        over_limit: Whether all that is wrong is that it costs too much quality.
        provisional: Whether limits are judged later, with the passes that come after it.
        excess: The limit that it does not keep, in words, where they are.
        details: What the checks found, for the machine-readable report.
        started: When, by the clock of :func:`time.perf_counter`.
        ended: When it was over, by the same clock; None while it goes on.
    """

    item: Pass
    before: Program
    context: Context
    analyses: Analyses
    candidate: Program | None = None
    result: PassResult | None = None
    outputs: Outputs = field(default_factory=list)
    status: Status = "applied"
    reason: str = ""
    error: float | None = None
    drift: float | None = None
    score: float | None = None
    over_limit: bool = False
    provisional: bool = False
    excess: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.item.info.name

    @property
    def exact(self) -> bool:
        """Whether the pass declares itself exact."""
        return isinstance(self.item.info.fidelity, Exact)

    @property
    def after(self) -> Program:
        """What stands once the attempt is over: the candidate only if it is accepted."""
        accepted = self.status == "applied" and self.candidate is not None
        return self.candidate if accepted and self.candidate is not None else self.before

    def record(self) -> PassRecord:
        """The attempt as plain data."""
        result = self.result or PassResult(changed=False)
        return PassRecord(
            name=self.name,
            text=format_pass(self.item),
            exact=self.exact,
            status=self.status,
            reason=self.reason,
            nodes_before=len(self.before.graph.nodes),
            nodes_after=len(self.after.graph.nodes),
            bytes_before=self.before.weight_bytes(),
            bytes_after=self.after.weight_bytes(),
            work_before=self._work(self.before),
            work_after=self._work(self.after),
            seconds=(self.ended or time.perf_counter()) - self.started,
            error=self.error,
            drift=self.drift,
            score=self.score,
            summary="" if self.status == "rolled back" else result.summary,
            refused=tuple(result.refused),
            details={**result.details, **self.details},
        )

    def _work(self, program: Program) -> int | None:
        """Multiply-adds; only what changes the structure changes them."""
        if self.item.info.stage != "structure" or self.status != "applied":
            return None
        return sum(multiply_adds(program).values())
