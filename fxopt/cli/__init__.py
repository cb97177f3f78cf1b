"""The command line: ``fxopt optimize``, ``plan``, ``bisect``, ``passes``, ``plugins``, ``demo``.

One command a file. What is heavy (torch above all) is imported inside the commands, so that
``fxopt --help`` answers at once.
"""

from fxopt.cli.main import app

__all__ = ["app"]
