"""The pass itself: its steps, repeated until none of them finds anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fxopt.plugin import Context, Edit, Exact, Pass, PassInfo, PassResult, Program
from fxopt_cleanup import attention, constants, dead, maxima, merge, noops, written

Step = Callable[[Program, Edit], Counter[str]]


@dataclass(frozen=True)
class Cleanup(Pass):
    """Removes what inference does not need, and computes once what does not change.

    A costly activation of which only the largest value over many positions is kept moves behind
    the maximum: `gelu(x).amax(2)` becomes that of the largest and the smallest x.

    Attention that is written out, scaled products, mask, softmax and sums of values, becomes the
    operator for it where that means the same.

    Dropout and its kin are no-ops in inference, so that they go too: a program that is to be
    trained as the user's model is must not be cleaned up.

    Attributes:
        constant_mb: No folded constant may be larger than this, in megabytes of 2^20 bytes,
            unless the tensors that it is computed from are larger still.
        parameters: Whether to fold what is computed from parameters alone. These can then no
            longer be trained.
    """

    constant_mb: float = 16.0
    parameters: bool = False

    info = PassInfo(
        name="cleanup",
        stage="prepare",
        fidelity=Exact(),
        provides=("no_dead_code", "no_noops", "no_common_subexpressions"),
    )

    def run(self, program: Program, context: Context) -> PassResult:
        edit = program.edit()
        counts: Counter[str] = Counter()
        while sum((found := self._round(program, edit)).values()):
            counts += found
        return edit.result(_summary(counts), **counts)

    def _round(self, program: Program, edit: Edit) -> Counter[str]:
        """One turn of every step; each leaves a tidy graph to the next one."""
        found: Counter[str] = Counter()
        for step in self._steps():
            with edit:
                found += step(program, edit)
        return found

    def _steps(self) -> tuple[Step, ...]:
        folding = constants.Folding(int(self.constant_mb * 2**20), self.parameters)
        return (
            dead.remove_dead,
            attention.use_operator,
            noops.remove_noops,
            maxima.activate_maxima,
            folding.fold,
            written.use_operator,
            merge.merge_common,
        )


# The counts of the summary, for one and for several; all others are no-ops, by rule.
_WORDS = {
    "dead": ("dead", "dead"),
    "no-ops": ("no-op", "no-ops"),
    "views to reshapes": ("view to reshape", "views to reshapes"),
    "attention": ("attention", "attentions"),
    "maxima": ("maximum before its activation", "maxima before their activations"),
    "folded": ("folded", "folded"),
    "merged": ("merged", "merged"),
}


def _summary(counts: Counter[str]) -> str:
    """Such as "2 dead, 12 no-ops, 45 folded"; the rules behind the no-ops are in the details."""
    totals = dict.fromkeys(_WORDS, 0)
    for name, count in counts.items():
        totals[name if name in totals else "no-ops"] += count
    return ", ".join(f"{n} {_WORDS[name][n > 1]}" for name, n in totals.items() if n)
