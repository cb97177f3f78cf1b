"""fxopt: a compiler for trained PyTorch models."""

__version__ = "0.1.0.dev0"
