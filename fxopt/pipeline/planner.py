"""The planner: puts passes in an order from what they declare, and explains it."""

from __future__ import annotations

import difflib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from fxopt.analysis import Fact
from fxopt.errors import PlanError
from fxopt.passes import STAGES, Pass, format_pass, format_passes


@dataclass(frozen=True)
class Step:
    """A pass in a plan.

    Attributes:
        item: The pass.
        reasons: Why it stands where it stands, besides its stage.
    """

    item: Pass
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Passes in the order in which they run.

    Attributes:
        steps: The passes with the reasons for their places.
    """

    steps: tuple[Step, ...] = ()

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes in order."""
        return tuple(step.item for step in self.steps)

    def explain(self) -> str:
        """One line a pass: its number, stage and text form, and why it stands where it stands."""
        texts = [format_pass(item) for item in self.passes]
        width = max(map(len, texts), default=0)
        lines = [
            f"{number:2d}  {step.item.info.stage:9s}  {text:{width}s}  {'; '.join(step.reasons)}"
            for number, (step, text) in enumerate(zip(self.steps, texts, strict=True), 1)
        ]
        return "\n".join(line.rstrip() for line in lines) or "no passes"


def plan(
    passes: Sequence[Pass],
    facts: Mapping[str, Fact],
    holding: Container[str],
    providers: Mapping[str, Sequence[str]] | None = None,
) -> Plan:
    """Orders passes: by stage, then by facts, then by ``after`` and ``before``, ties by name.

    The order depends on the passes alone, not on that in which they are given. A pass may occur
    twice with other settings. A pass that both requires and provides a fact only keeps it: it is
    not what makes the fact true.

    Args:
        passes: What to order.
        facts: All facts by name.
        holding: Names of the facts that are true of the program at the start.
        providers: Names of the passes that provide a fact, installed but not necessarily given.

    Raises:
        PlanError: A cycle, a fact that is unknown or missing when it is required, or an
            ``after`` or ``before`` that contradicts the stages. Says what to write instead.
    """
    ranked = sorted(passes, key=_rank)
    _check_facts_are_known(ranked, facts)
    _check_stages(ranked)
    graph = _Constraints(ranked, holding).build()
    order = nx.lexicographical_topological_sort(graph, key=lambda node: node)
    steps = tuple(Step(ranked[node], _reasons(graph, node, ranked, holding)) for node in order)
    _check_requirements(steps, facts, holding, providers or {})
    return Plan(steps)


class _Constraints:
    """Builds the graph of passes of one stage that must precede one another.

    Nodes are indices into the passes, an edge says ``why``. Facts that hold anyhow bind only
    where nothing else contradicts: there a provider goes first in case the fact gets broken.
    """

    def __init__(self, ranked: Sequence[Pass], holding: Container[str]) -> None:
        self._ranked = ranked
        self._holding = holding
        self._graph: nx.DiGraph[int] = nx.DiGraph()
        self._graph.add_nodes_from(range(len(ranked)))
        self._wishes: list[tuple[int, int, str]] = []

    def build(self) -> nx.DiGraph[int]:
        """The acyclic graph.

        Raises:
            PlanError: The declarations form a cycle; it is listed.
        """
        for first, before in enumerate(self._ranked):
            for second, after in enumerate(self._ranked):
                if before.info.stage == after.info.stage:
                    self._add_facts(first, second)
                    self._add_names(first, second)
        self._check_acyclic()
        for first, second, why in self._wishes:
            if not nx.has_path(self._graph, second, first):
                self._graph.add_edge(first, second, why=why)
        return self._graph

    def _add_facts(self, first: int, second: int) -> None:
        provider, requirer = self._ranked[first].info, self._ranked[second].info
        for fact in sorted(set(provider.provides) & set(requirer.requires)):
            if fact in provider.requires:
                continue
            why = f"{provider.name} provides {fact}, which {requirer.name} requires"
            if self._is_secured(fact, _stage_of(self._ranked[second])):
                self._wishes.append((first, second, why))
            else:
                self._graph.add_edge(first, second, why=why)

    def _add_names(self, first: int, second: int) -> None:
        before, after = self._ranked[first].info, self._ranked[second].info
        if before.name in after.after:
            why = f"{after.name} declares after={before.name}"
            self._graph.add_edge(first, second, why=why)
        elif after.name in before.before:
            why = f"{before.name} declares before={after.name}"
            self._graph.add_edge(first, second, why=why)

    def _is_secured(self, fact: str, stage: int) -> bool:
        """Whether the fact holds, or a pass of an earlier stage provides it."""
        return fact in self._holding or any(
            fact in item.info.provides and _stage_of(item) < stage for item in self._ranked
        )

    def _check_acyclic(self) -> None:
        try:
            cycle = nx.find_cycle(self._graph)
        except nx.NetworkXNoCycle:
            return
        texts = [format_pass(self._ranked[edge[0]]) for edge in cycle]
        whys = [str(self._graph.edges[edge[0], edge[1]]["why"]) for edge in cycle]
        raise PlanError(
            f"the passes cannot be put in an order: {' -> '.join([*texts, texts[0]])}",
            where="; ".join(whys),
            hint="leave one of them out, or correct what one of them declares",
        )


def _rank(item: Pass) -> tuple[int, str, str]:
    return _stage_of(item), item.info.name, format_pass(item)


def _stage_of(item: Pass) -> int:
    return STAGES.index(item.info.stage)


def _check_facts_are_known(ranked: Sequence[Pass], facts: Mapping[str, Fact]) -> None:
    for item in ranked:
        for fact in (*item.info.requires, *item.info.provides):
            if fact in facts:
                continue
            verb = "requires" if fact in item.info.requires else "provides"
            close = difflib.get_close_matches(fact, list(facts), n=1)
            known = ", ".join(sorted(facts)) or "none"
            raise PlanError(
                f"{item.info.name} {verb} the fact {fact!r}, which no plugin declares",
                hint=f"did you mean {close[0]!r}?" if close else f"there are: {known}",
            )


def _check_stages(ranked: Sequence[Pass]) -> None:
    """``after`` and ``before`` order passes of one stage; they cannot overrule the stages."""
    stages = {item.info.name: item.info.stage for item in ranked}
    for item in ranked:
        own = _stage_of(item)
        late = [n for n in item.info.after if n in stages and STAGES.index(stages[n]) > own]
        early = [n for n in item.info.before if n in stages and STAGES.index(stages[n]) < own]
        for name, word in [(n, "after") for n in late] + [(n, "before") for n in early]:
            raise PlanError(
                f"{item.info.name} declares {word}={name}, but {item.info.name} is of the stage "
                f"{item.info.stage} and {name} of the stage {stages[name]}",
                hint=f"stages come first, in the order {', '.join(STAGES)}; leave one of them out",
            )


def _check_requirements(
    steps: Sequence[Step],
    facts: Mapping[str, Fact],
    holding: Container[str],
    providers: Mapping[str, Sequence[str]],
) -> None:
    provided: set[str] = set()
    for step in steps:
        for fact in step.item.info.requires:
            if fact not in holding and fact not in provided:
                raise _missing(step.item, facts[fact], [s.item for s in steps], providers)
        provided.update(step.item.info.provides)


def _missing(
    item: Pass, fact: Fact, passes: Sequence[Pass], providers: Mapping[str, Sequence[str]]
) -> PlanError:
    name, stage = item.info.name, item.info.stage
    need = f"{name} requires the fact {fact.name} ({fact.meaning})"
    late = [p.info for p in passes if fact.name in p.info.provides and p.info.stage != stage]
    if late:
        return PlanError(
            f"{need}, but {late[0].name} provides it only in the later stage {late[0].stage}, "
            f"and {name} is of the stage {stage}",
            hint=_advice(item, fact, passes, providers, besides={info.name for info in late}),
        )
    return PlanError(
        f"{need}, which does not hold of the model, and no pass before it provides it",
        hint=_advice(item, fact, passes, providers, besides={name}),
    )


def _advice(
    item: Pass,
    fact: Fact,
    passes: Sequence[Pass],
    providers: Mapping[str, Sequence[str]],
    besides: Container[str],
) -> str:
    """What to write so that somebody provides ``fact``."""
    able = [name for name in providers.get(fact.name, ()) if name not in besides]
    if not able:
        return f"leave {item.info.name} out, or install a plugin that provides {fact.name}"
    text = ",".join([able[0], format_passes(sorted(passes, key=_rank))])
    return f"{' or '.join(able)} can provide it: write passes={text!r}"


def _reasons(
    graph: nx.DiGraph[int], node: int, ranked: Sequence[Pass], holding: Container[str]
) -> tuple[str, ...]:
    info = ranked[node].info
    reasons = [str(graph.edges[edge]["why"]) for edge in sorted(graph.in_edges(node))]
    for fact in info.requires:
        earlier = [
            p for p in ranked if fact in p.info.provides and _stage_of(p) < _stage_of(ranked[node])
        ]
        if earlier:
            names = ", ".join(dict.fromkeys(p.info.name for p in earlier))
            reasons.append(f"requires {fact}, provided before by {names}")
        elif fact in holding:
            reasons.append(f"requires {fact}, which holds of the model")
    peers = [p for p in ranked if p.info.stage == info.stage]
    if not reasons and len(peers) > 1:
        reasons.append("nothing binds it within its stage: by name")
    return tuple(dict.fromkeys(reasons))
