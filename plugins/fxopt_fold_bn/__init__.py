"""The pass ``fold_bn``: batch norms become part of the convolution or linear layer beside them."""

from __future__ import annotations

from fxopt.plugin import Fact, Pass, hookimpl
from fxopt_fold_bn.fold_bn import FoldBN
from fxopt_fold_bn.match import unfolded

FACTS = [
    Fact("batch_norms_folded", "no batch norm is left that could be folded", unfolded),
]


@hookimpl
def fxopt_passes() -> list[type[Pass]]:
    """The pass of this plugin."""
    return [FoldBN]


@hookimpl
def fxopt_facts() -> list[Fact]:
    """What the pass makes true."""
    return FACTS
