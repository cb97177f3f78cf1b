"""Checks of what a pass does to a program."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fxopt.errors import ProgramError
from fxopt.ir import Program
from fxopt.passes import Exact
from fxopt.pipeline.checks import CHECKS, all_values_are_right
from fxopt.pipeline.compare import beyond, compare
from fxopt.pipeline.identity import difference, named_tensors
from fxopt.testing.cases import Case
from fxopt.testing.subject import (
    Attempt,
    ConformanceError,
    ProgramCheck,
    Subject,
    copy_program,
    require,
    require_none,
)


def leaves_a_program(subject: Subject, case: Case) -> None:
    """The invariants hold, the interface is kept, nothing dangles, metadata is right."""
    _require_program(subject.attempt(case))


def is_exact(subject: Subject, case: Case) -> None:
    """An exact pass changes outputs by rounding alone, at each batch size."""
    _require_exact(subject, case, subject.attempt(case))


def runs_at_two_batch_sizes(subject: Subject, case: Case) -> None:
    """The result runs on each input, and yields outputs of the same shapes and dtypes."""
    attempt = subject.attempt(case)
    for mine, theirs in zip(_outputs(case, attempt.after), case.outputs(), strict=True):
        require(compare(mine, theirs).error < float("inf"), compare(mine, theirs).where)


def provides_its_facts(subject: Subject, case: Case) -> None:
    """The facts that a pass provides hold afterwards."""
    known, after = subject.known_facts(), subject.attempt(case).after
    facts = [known[name] for name in subject.item.info.provides if name in known]
    require_none(
        f"{fact.name} does not hold: {counterexample}"
        for fact in facts
        for counterexample in fact.counterexamples(after)
    )


def is_idempotent(subject: Subject, case: Case) -> None:
    """A second run finds nothing to do, where what the pass requires still holds."""
    first = subject.attempt(case)
    if not subject.ready(first.after):
        return
    second = subject.attempt(case, on=first.after)
    require(not second.result.changed, f"a second run did: {second.result.summary}")
    require_none(_differences(first.after, second.after), "a second run changes the program")


def tells_whether_it_changed(subject: Subject, case: Case) -> None:
    """``changed`` is true if and only if the program is another one."""
    attempt = subject.attempt(case)
    found = difference(attempt.before, attempt.after)
    if attempt.result.changed:
        require(found is not None, "it claims a change, and there is none")
        require(bool(attempt.result.summary), "it has changed something, and has no summary")
    else:
        require(found is None, f"it claims to have changed nothing, but {found}")


def counts_nodes(subject: Subject, case: Case) -> None:
    """The node counts in the result are those of the program."""
    attempt = subject.attempt(case)
    if not attempt.result.changed:
        return
    for name, program in (("before", attempt.before), ("after", attempt.after)):
        told, real = getattr(attempt.result, f"nodes_{name}"), len(program.graph.nodes)
        require(told == real, f"nodes_{name} is {told}, and there are {real}")


def leaves_other_programs_alone(subject: Subject, case: Case) -> None:
    """A run changes no program but its own, and shares no tensor with another."""
    first = subject.attempt(case)
    kept = copy_program(first.after)
    second = subject.attempt(case)
    require_none(_differences(kept, first.after), "a later run changes an earlier run's result")
    require_none(_shared(first.after, second.after), "give each run tensors of its own")
    require_none(_shared(first.before, first.after), "the pass was given a copy: work on that")


def is_deterministic(subject: Subject, case: Case) -> None:
    """Two runs yield the same program, whatever the state of the random generators is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = subject.attempt(case)
        torch.manual_seed(2)
        second = subject.attempt(case)
    require_none(_differences(first.after, second.after), "two runs yield different programs")


def respects_a_limit_of_zero(subject: Subject, case: Case) -> None:
    """With a rewrite limit of zero nothing is changed, weights included."""
    attempt = subject.attempt(case, limit=0)
    require(not attempt.result.changed, "it claims a change")
    require_none(_differences(attempt.before, attempt.after), "check edit.exhausted")


def rewrites_stand_alone(subject: Subject, case: Case) -> None:
    """Each rewrite is right on its own, so that ``fxopt bisect`` can find a guilty one."""
    count = len(subject.attempt(case).result.rewrites)
    for limit in sorted({1, count // 2, count - 1} & set(range(1, count))):
        attempt = subject.attempt(case, limit=limit)
        done = len(attempt.result.rewrites)
        require(done <= limit, f"{done} rewrites under a limit of {limit}")
        try:
            _require_program(attempt)
            _require_exact(subject, case, attempt)
        except ConformanceError as error:
            raise ConformanceError(f"after {limit} of {count} rewrites: {error.what}") from error


def result_can_be_copied(subject: Subject, case: Case) -> None:
    """The result deep-copies, and takes its own state_dict back; neither changes outputs."""
    after = subject.attempt(case).after
    twin = copy_program(after).module
    twin.load_state_dict(after.module.state_dict())
    for flat, expected in zip(case.inputs, _outputs(case, after), strict=True):
        with torch.no_grad():
            require(compare(twin(*flat), expected).error == 0.0, "a copy computes something else")


def acts_somewhere(subject: Subject, cases: Iterable[Case]) -> None:
    """On one case at least the pass does something: else all other checks would be empty."""
    ready = (case for case in cases if subject.ready(subject.start(case)))
    acts = any(subject.attempt(case).result.changed for case in ready)
    require(acts, "the pass does nothing on any case", "give check_pass cases= that it acts on")


PROGRAM_CHECKS: tuple[ProgramCheck, ...] = (
    leaves_a_program,
    is_exact,
    runs_at_two_batch_sizes,
    provides_its_facts,
    is_idempotent,
    tells_whether_it_changed,
    counts_nodes,
    leaves_other_programs_alone,
    is_deterministic,
    respects_a_limit_of_zero,
    rewrites_stand_alone,
    result_can_be_copied,
)


def _require_program(attempt: Attempt) -> None:
    try:
        attempt.after.verify()
    except ProgramError as error:
        raise ConformanceError(error.what) from error
    for check in (*CHECKS, all_values_are_right):
        require_none(check(attempt.before, attempt.after))


def _require_exact(subject: Subject, case: Case, attempt: Attempt) -> None:
    fidelity = subject.item.info.fidelity
    if not isinstance(fidelity, Exact):
        return
    references = case.outputs(attempt.before)
    for flat, mine, theirs in zip(
        case.inputs, _outputs(case, attempt.after), references, strict=True
    ):
        found = beyond(mine, theirs, fidelity.tolerance)
        where = f"at the inputs {[tuple(t.shape) for t in flat if isinstance(t, torch.Tensor)]}"
        if found is not None:
            require(False, f"{found[0].where} is off by {found[0].error:.1e} {where}")


def _outputs(case: Case, program: Program) -> list[tuple[object, ...]]:
    try:
        return case.outputs(program)
    except Exception as error:
        raise ConformanceError(
            f"the result does not run: {type(error).__name__}: {error}"
        ) from error


def _differences(before: Program, after: Program) -> list[str]:
    found = difference(before, after)
    return [] if found is None else [found]


def _shared(first: Program, second: Program) -> list[str]:
    memory = {t.data_ptr() for t in named_tensors(first).values() if t.numel()}
    named = named_tensors(second).items()
    shared = [name for name, tensor in named if tensor.numel() and tensor.data_ptr() in memory]
    return [f"{name} is shared between two programs" for name in shared]
