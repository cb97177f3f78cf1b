"""Which passes are judged together: what takes quality, up to what brings it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fxopt.passes import Lossy, Pass
from fxopt.pipeline.trial import Trial

Chapter = tuple[Pass, ...]


def chapters(passes: Sequence[Pass]) -> Iterator[Chapter]:
    """Cuts a plan into runs of passes; limits of quality are checked at the end of each.

    A pass that shrinks the network would seldom keep a limit before training has made up for it.
    So all from the first lossy pass of the stage ``structure`` to the last one of ``recover`` is
    one chapter, where there are both; any other pass is one of its own.
    """
    first = next((i for i, item in enumerate(passes) if _shrinks(item)), len(passes))
    last = max((i for i, item in enumerate(passes) if item.info.stage == "recover"), default=-1)
    if first > last:
        yield from ((item,) for item in passes)
        return
    yield from ((item,) for item in passes[:first])
    yield tuple(passes[first : last + 1])
    yield from ((item,) for item in passes[last + 1 :])


def _shrinks(item: Pass) -> bool:
    return item.info.stage == "structure" and isinstance(item.info.fidelity, Lossy)


def verdict_of(trials: Sequence[Trial]) -> str:
    """The limit that a chapter does not keep, in words; empty where it keeps all.

    The last pass that changed something decides.
    """
    applied = [trial for trial in trials if trial.status == "applied" and not trial.exact]
    return applied[-1].excess if applied else ""
