"""The conformance kit: named checks that hold a pass to the contract, on reference models.

In the spirit of scikit-learn's ``check_estimator``::

    @pytest.mark.parametrize("check", check_pass(FoldBN()), ids=str)
    def test_conformance(check):
        check()
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fxopt.analysis import Fact
from fxopt.errors import InputError
from fxopt.passes import Pass
from fxopt.testing.cases import Case
from fxopt.testing.checks import PROGRAM_CHECKS, acts_somewhere
from fxopt.testing.declaration import DECLARATION_CHECKS
from fxopt.testing.reference import MODELS, reference_case
from fxopt.testing.subject import CheckBody, ConformanceError, ProgramCheck, Subject

__all__ = ["Check", "ConformanceError", "check_pass"]


@dataclass(frozen=True)
class Check:
    """One thing to check of a pass; call it.

    Attributes:
        name: Such as ``is_idempotent[residual]``.
        subject: Name of the class of the pass.
        body: Raises :class:`ConformanceError` where the pass fails.
        expected: Why it is known to fail; empty if it is not.
    """

    name: str
    subject: str
    body: CheckBody
    expected: str = ""

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> None:
        """Runs the check.

        Raises:
            ConformanceError: The pass fails it, or passes though it is expected to fail.
        """
        try:
            self.body()
        except ConformanceError:
            if self.expected:
                return
            raise
        if self.expected:
            raise ConformanceError(
                f"{self.subject} passes {self.name}, though it is expected to fail",
                hint=f"take it out of expected_failures (the reason was: {self.expected})",
            )


def check_pass(
    item: Pass,
    *,
    cases: Iterable[Case] | None = None,
    facts: Iterable[Fact] = (),
    prepare: Sequence[Pass] = (),
    expected_failures: Mapping[str, str] | None = None,
) -> Iterator[Check]:
    """Generates the checks of a pass. No model is captured before one is called.

    Args:
        item: The pass, with the settings to check it with.
        cases: Programs to run it on, by default the reference models. It has to do something on
            one of them at least.
        facts: Facts that it names and that no installed plugin declares.
        prepare: Passes to run first, such as those that provide what it requires.
        expected_failures: Reasons by the name of a check, such as ``is_idempotent[residual]``.

    Yields:
        The checks, in a fixed order.

    Raises:
        InputError: A name in ``expected_failures`` is no check.
    """
    subject = Subject(item, tuple(facts), tuple(prepare))
    bodies = dict(_bodies(subject, _loaders(cases)))
    expected = dict(expected_failures or {})
    for name in expected:
        if name not in bodies:
            close = difflib.get_close_matches(name, bodies, n=1)
            hint = f"did you mean {close[0]!r}?" if close else None
            raise InputError(f"there is no check {name!r}", hint=hint)
    for name, body in bodies.items():
        yield Check(name, type(item).__name__, body, expected.get(name, ""))


Loaders = Mapping[str, Callable[[], Case]]


def _loaders(cases: Iterable[Case] | None) -> Loaders:
    if cases is None:
        return {name: partial(reference_case, name) for name in MODELS}
    return {case.name: partial(_itself, case) for case in cases}


def _itself(case: Case) -> Case:
    return case


def _bodies(subject: Subject, loaders: Loaders) -> Iterator[tuple[str, CheckBody]]:
    for declaration in DECLARATION_CHECKS:
        yield declaration.__name__, partial(declaration, subject)
    yield "acts_somewhere", lambda: acts_somewhere(subject, (load() for load in loaders.values()))
    for check in PROGRAM_CHECKS:
        for name, load in loaders.items():
            yield f"{check.__name__}[{name}]", partial(_on_case, check, subject, load)


def _on_case(check: ProgramCheck, subject: Subject, load: Callable[[], Case]) -> None:
    case = load()
    if subject.ready(subject.start(case)):  # where it is not, the manager would not run the pass
        check(subject, case)
