"""How the attempt to run a pass ends early, and who is to blame for it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxopt.errors import FxoptError
from fxopt.passes import Pass
from fxopt.report import Status

_LONGEST = 600  # characters of an exception's message that a reason quotes


class Verdict(Exception):  # noqa: N818 - it ends an attempt, it is no error
    """The pass's result, if it has one, is not used; the text says why."""

    status: Status = "rolled back"


class Skip(Verdict):
    """The pass does not run."""

    status = "skipped"


class Reject(Verdict):
    """The pass failed or broke its word."""


class OverLimit(Reject):
    """The pass did what it says, but that costs more quality than the caller allows."""


@contextmanager
def blamed(item: Pass, doing: str) -> Iterator[None]:
    """Turns whatever is raised inside into a rejection of ``item``.

    A pass that calls ``sys.exit`` is no exception to this; the user's Ctrl-C is.

    Args:
        item: The pass that runs, or whose result is examined.
        doing: What failed, in words that follow the pass's name: ``failed``.

    Raises:
        Reject: With the exception's type and message, and the line of the pass that raised it.
    """
    try:
        yield
    except Verdict:
        raise
    except (Exception, SystemExit) as error:
        raise Reject(f"{item.info.name} {doing}: {describe_failure(error, item)}") from error


def describe_failure(error: BaseException, item: Pass) -> str:
    """The exception's type, its message, and where in the pass's own files it came from."""
    # an FxoptError says what, where and what to do on lines of their own
    message = _advised(error) if isinstance(error, FxoptError) else str(error)
    violations = getattr(error, "violations", ())
    message = "; ".join(violations) if violations else " ".join(message.split())
    if len(message) > _LONGEST:
        message = message[: _LONGEST - 3] + "..."
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    place = _deepest_frame(error, item)
    return f"{text} (at {place})" if place else text


def _advised(error: FxoptError) -> str:
    """What failed, and what the user can do about it."""
    return f"{error.what}; {error.hint}" if error.hint else error.what


def _deepest_frame(error: BaseException, item: Pass) -> str | None:
    """The innermost line that the pass's author wrote; None where none took part."""
    home = _home(type(item))
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if home is not None and _within(f.filename, home)]
    return f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else None


def _home(cls: type[Pass]) -> Path | None:
    """The file of the class, or the folder of the package that it is in."""
    package = sys.modules.get(cls.__module__.partition(".")[0])
    module = sys.modules.get(cls.__module__)
    if package is not None and getattr(package, "__file__", None) and hasattr(package, "__path__"):
        return Path(str(package.__file__)).resolve().parent
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def _within(filename: str, home: Path) -> bool:
    path = Path(filename).resolve()
    return path == home or home in path.parents
