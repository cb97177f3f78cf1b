"""The pass ``cleanup``: dead code, repeated work, constants and no-ops go."""

from __future__ import annotations

from fxopt.plugin import Fact, Pass, hookimpl
from fxopt_cleanup.cleanup import Cleanup
from fxopt_cleanup.dead import dead_code
from fxopt_cleanup.merge import common_subexpressions
from fxopt_cleanup.noops import no_operations

FACTS = [
    Fact("no_dead_code", "every operation contributes to an output", dead_code),
    Fact("no_noops", "no operation returns its argument unchanged in inference", no_operations),
    Fact("no_common_subexpressions", "nothing is computed twice", common_subexpressions),
]


@hookimpl
def fxopt_passes() -> list[type[Pass]]:
    """The pass of this plugin."""
    return [Cleanup]


@hookimpl
def fxopt_facts() -> list[Fact]:
    """What the pass makes true."""
    return FACTS
