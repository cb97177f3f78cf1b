"""What authors of passes test with: captured models, generated models, a conformance kit.

``fxopt.testing.strategies`` needs hypothesis and is imported on its own.
"""

from fxopt.testing.cases import Case, make_case, run_pass, worst_error
from fxopt.testing.conformance import Check, ConformanceError, check_pass
from fxopt.testing.reference import reference_cases

__all__ = [
    "Case",
    "Check",
    "ConformanceError",
    "check_pass",
    "make_case",
    "reference_cases",
    "run_pass",
    "worst_error",
]
