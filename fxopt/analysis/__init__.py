"""What can be known of a program: facts that are checked, analyses that are computed."""

from fxopt.analysis.base import Analyses, Analysis
from fxopt.analysis.facts import Fact
from fxopt.analysis.windows import windows

__all__ = ["Analyses", "Analysis", "Fact", "windows"]
