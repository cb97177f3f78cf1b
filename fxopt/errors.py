"""Every error that fxopt raises on purpose: what failed, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable


class FxoptError(Exception):
    """Base of all errors of fxopt.

    Args:
        what: What failed, in one sentence.
        where: The user's source line, the pass, or the node concerned.
        hint: What the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        lines = [what, f"  at {where}" if where else "", f"  hint: {hint}" if hint else ""]
        super().__init__("\n".join(line for line in lines if line))


class InputError(FxoptError, ValueError):
    """The caller handed over something that cannot be used."""


class NotYetError(FxoptError, NotImplementedError):
    """An argument is part of the API but not implemented yet."""


class CaptureError(FxoptError):
    """The model, or no part of it, can be captured."""


class ProgramError(FxoptError):
    """A program breaks an invariant of the canonical form."""

    def __init__(self, violations: Iterable[str], *, where: str | None = None) -> None:
        self.violations = tuple(violations)
        listed = "\n".join(f"  - {violation}" for violation in self.violations)
        super().__init__(f"the program breaks its invariants:\n{listed}", where=where)


class SavingError(FxoptError):
    """A program cannot be saved, or a file cannot be loaded as one."""


class PlanError(FxoptError):
    """The passes cannot be put in an order: a cycle, or a fact that nobody provides."""


class PassError(FxoptError):
    """A pass failed or broke its word."""


class SettingError(InputError):
    """A pass has no such setting, or the setting no such value."""


class PluginError(FxoptError):
    """A plugin cannot be used."""


class BackendError(FxoptError):
    """A backend is missing, or could not lower a region."""


class CalibrationError(InputError):
    """Calibration data is missing, empty or of the wrong form."""
