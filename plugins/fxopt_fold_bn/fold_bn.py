"""The pass itself: folds what the matcher finds, until there is nothing left."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from fxopt.plugin import Context, Edit, Exact, Pass, PassInfo, PassResult, Program
from fxopt_fold_bn.arithmetic import State, set_state
from fxopt_fold_bn.layers import batch_norms, calls_of, copied
from fxopt_fold_bn.match import Fold, Refusal, match


@dataclass(frozen=True)
class FoldBN(Pass):
    """Folds batch norms into the convolution or linear layer before or after them.

    In inference a batch norm is an affine function per channel, which a linear operation beside
    it can absorb, as in section 3.2 of Jacob et al., "Quantization and Training of Neural Networks
    for Efficient Integer-Arithmetic-Only Inference" (2018), https://arxiv.org/abs/1712.05877. What
    cannot be folded without changing outputs or computing more is refused with the reason.
    """

    info = PassInfo(
        name="fold_bn",
        stage="simplify",
        fidelity=Exact(),
        provides=("batch_norms_folded",),
    )

    def inapplicable(self, program: Program, context: Context) -> str | None:
        return None if any(True for _ in batch_norms(program)) else "no batch norm"

    def run(self, program: Program, context: Context) -> PassResult:
        edit = program.edit()
        count = 0
        while folded := _round(program, edit):  # a fold may bring the next batch norm into reach
            count += folded
        refused = _refuse_rest(program, edit)
        return edit.result(f"{count} folded" if count else "", folded=count, refused=refused)


def _round(program: Program, edit: Edit) -> int:
    """Matches anew for each batch norm, as folding one changes what its neighbours are beside."""
    count = 0
    copies = _Copies(program)
    with edit:
        for norm in list(batch_norms(program)):
            found = match(program, norm)
            if edit.exhausted or not isinstance(found, Fold):
                continue
            _apply(program, edit, found, copies)
            count += 1
    return count


def _refuse_rest(program: Program, edit: Edit) -> int:
    count = 0
    for norm in batch_norms(program):
        found = match(program, norm)
        if isinstance(found, Refusal):
            edit.refuse(norm, found.reason)
            count += 1
    return count


def _apply(program: Program, edit: Edit, fold: Fold, copies: _Copies) -> None:
    for layer, state in fold.layers:
        if not fold.after:
            module = copies.folded(layer, fold.norm, state)
            edit.replace(layer, module, fold.source, *layer.args[1:], **layer.kwargs)
        elif calls_of(program, program.leaf(layer)) == [layer]:
            set_state(program.leaf(layer), state)
            edit.redirect(fold.norm, layer)
        else:  # others call or read it too
            module = copies.folded(layer, fold.norm, state)
            copy = edit.call(module, *layer.args, before=layer, **layer.kwargs)
            edit.redirect(fold.norm, copy)


class _Copies:
    """Folded copies of layers; the same layer beside the same batch norm shares one."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._modules: dict[tuple[nn.Module, nn.Module], nn.Module] = {}

    def folded(self, layer: fx.Node, norm: fx.Node, state: State) -> nn.Module:
        """The copy of the module of ``layer`` that has absorbed the one of ``norm``."""
        leaf = self._program.leaf(layer)
        key = (leaf, self._program.leaf(norm))
        if key not in self._modules:
            self._modules[key] = copied(leaf)
            set_state(self._modules[key], state)
        return self._modules[key]
