"""Which channels of a program can only be removed together."""

from fxopt_prune.channels.groups import Group, Side, Structure, find_groups

__all__ = ["Group", "Side", "Structure", "find_groups"]
