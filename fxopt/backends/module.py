"""The module that calls lowered code, one compilation per set of input shapes."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from fxopt.backends import pages
from fxopt.backends.base import Backend, Executable, Kernel, Lowering
from fxopt.backends.cache import LIMIT, CodeCache, Key
from fxopt.backends.fallback import find_fallbacks
from fxopt.backends.giveback import give_back
from fxopt.cost import Target
from fxopt.errors import SavingError
from fxopt.ir import LeafModule, Program

if TYPE_CHECKING:
    from typing_extensions import Self

Compare = Callable[[Executable, Executable, Sequence[torch.Tensor]], str | None]
"""Says how the outputs of code differ from those of the program itself; None where they do not."""


class LoweredModule(LeafModule):
    """Runs a program as code of a backend; to the outside, an ordinary module.

    Code is compiled for each set of input shapes and kept for those that are used most; where
    there are too many, the program itself runs for the rarer ones.

    It keeps the program that it was lowered from: in training mode, or when a gradient is asked
    for, that is what runs, since lowered code has no gradients. Weights that were trained,
    loaded with ``load_state_dict`` or converted make it lower again on the next call, and a deep
    copy lowers its own; one that changes weights otherwise calls ``.train().eval()``.

    Args:
        program: What to lower; all its inputs are tensors.
        backend: What lowers it.
        target: What it is lowered for.
    """

    _lowering: Lowering | None
    _warned: bool
    _compiled: CodeCache

    def __init__(self, program: Program, backend: Backend, target: Target) -> None:
        super().__init__()
        self.fxopt_source = program.module  # state_dict leaves this part of the name out
        self.eval()
        self._program = program
        self._backend = backend
        self._target = target
        self._check: Callable[..., None] = _accept
        self._compare: Compare | None = None
        self._reset()
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.training or (torch.is_grad_enabled() and _ask_for_gradients(inputs)):
            self._check(*inputs)
            outputs: tuple[torch.Tensor, ...] = self.fxopt_source(*inputs)
            return outputs
        key = self._key(inputs)
        code = self._compiled.find(key)
        if code is None:
            self._check(*inputs)
            if not self._compiled.admits(key):
                return self._run_source(*inputs)
            code = self._compile(key, inputs)
        return code(*inputs)

    def _key(self, inputs: tuple[torch.Tensor, ...]) -> Key:
        try:
            return tuple([(t.shape, t.dtype) for t in inputs])
        except AttributeError:  # no tensors
            self._check(*inputs)
            raise

    def check_with(self, check: Callable[..., None]) -> None:
        """Has ``check`` look at the inputs before anything is compiled for them, or runs as torch.

        Where code was compiled for inputs of such shapes and dtypes, they have passed.

        Args:
            check: Raises where inputs do not fit.
        """
        self._check = check

    def compare_with(self, compare: Compare) -> None:
        """Has code that is compiled from now on compared with the program, on its first inputs.

        Backends write other code for each set of shapes. Where ``compare`` finds some wrong, a
        warning says so, and the program runs in its place for inputs of those shapes.

        Args:
            compare: Is given the code, the program and the inputs.
        """
        self._compare = compare

    def _run_source(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"more than {LIMIT} sets of input shapes are in use: the rarer ones run as plain "
                "torch, which is slower; pad to fewer sizes if that matters",
                stacklevel=2,
            )
        return _Source(self.fxopt_source)(*inputs)

    def train(self, mode: bool = True) -> LoweredModule:
        """Switches to training; afterwards, the weights may have changed."""
        if mode:
            self._reset()
        return super().train(mode)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self._reset()  # .to(), .half() and the like
        applied: Self = super()._apply(fn, recurse)
        return applied

    def executable(self, *inputs: torch.Tensor) -> Executable:
        """The code for inputs of these shapes, compiled on first use."""
        key = self._key(inputs)
        found = self._compiled.holds(key)
        return found if found is not None else self._compile(key, inputs)

    def prepare(self, *inputs: torch.Tensor) -> None:
        """Does what can be done for inputs of these shapes before they are compiled for."""
        with self._lock, self._large_pages(inputs):
            self._lowered(inputs).prepare(inputs)

    def precisions(self) -> Counter[str]:
        """How many heavy operations ran in which precision, in the code compiled last."""
        newest = self._compiled.newest
        return newest.precisions() if newest is not None else Counter()

    def kernels(self) -> tuple[Kernel, ...]:
        """What runs in the code compiled last."""
        newest = self._compiled.newest
        return newest.kernels() if newest is not None else ()

    def fallbacks(self) -> tuple[str, ...]:
        """The layers that were to run in a lower precision than they do in that code."""
        return find_fallbacks(self._program, self.kernels())

    def _compile(self, key: Key, inputs: tuple[torch.Tensor, ...]) -> Executable:
        with self._lock:
            held = self._compiled.holds(key)
            if held is not None:
                return held
            with self._large_pages(inputs):
                code = self._lowered(inputs).compile(inputs)
            executable = self._right(code, inputs)
            self._compiled.add(key, executable)
            give_back(chain(self.fxopt_source.parameters(), self.fxopt_source.buffers()))
            return executable

    def _large_pages(self, inputs: tuple[torch.Tensor, ...]) -> AbstractContextManager[None]:
        return pages.large_pages() if pages.pay(self._program, inputs) else nullcontext()

    def _lowered(self, inputs: tuple[torch.Tensor, ...]) -> Lowering:
        if self._lowering is None:
            self._lowering = self._backend.lower(self._program, inputs, self._target)
        return self._lowering

    def _right(self, code: Executable, inputs: tuple[torch.Tensor, ...]) -> Executable:
        """The code, or where it is wrong, the program itself."""
        source = _Source(self.fxopt_source)
        reason = self._compare(code, source, inputs) if self._compare is not None else None
        if reason is None:
            return code
        shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in inputs)
        warnings.warn(
            f"the code of {self._backend.label} for inputs of {shapes} is wrong ({reason}): plain "
            "torch runs in its place, which is slower; other backends= may do better",
            stacklevel=2,
        )
        return source

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._lowering = None
        self._compiled = CodeCache()
        self._warned = False

    def __deepcopy__(self, memo: dict[int, Any]) -> LoweredModule:
        twin = LoweredModule(self._program.clone(memo), self._backend, self._target)
        memo[id(self)] = twin
        twin.check_with(self._check)
        twin._compare = self._compare
        return twin.train(self.training)

    def __reduce__(self) -> NoReturn:
        raise SavingError(
            "lowered code cannot be pickled: it fits this process alone",
            hint="pickle or save the optimized model as a whole; where a part of it stayed Python, "
            "its state_dict()",
        )

    def extra_repr(self) -> str:
        return f"backend={self._backend.label}"


class _Source(Executable):
    """The program itself, as torch runs it."""

    def __init__(self, program: torch.fx.GraphModule) -> None:
        self._program = program

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            outputs: tuple[torch.Tensor, ...] = self._program(*inputs)
        return outputs


def _accept(*inputs: object) -> None:
    """The check of a module within a graph whose inputs were checked at its entrance."""


def _ask_for_gradients(inputs: tuple[torch.Tensor, ...]) -> bool:
    return any(isinstance(t, torch.Tensor) and t.requires_grad for t in inputs)


def _forget(module: nn.Module, _keys: object) -> None:
    assert isinstance(module, LoweredModule)
    module._reset()
