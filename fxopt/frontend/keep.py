"""Keeps modules that act only in training (dropout, stochastic depth) in an eval-mode capture.

In eval mode such a module is the identity, so that `torch.export` drops it, and the captured
program could not be trained as the user's model is. Its forward is therefore replaced, on a copy,
by a marker operation, `fxopt::keep`, which is later raised to a call of the module itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node


@torch.library.custom_op("fxopt::keep", mutates_args=())
def keep(x: Tensor, name: str) -> Tensor:
    """Marks the place where the module of that name was called."""
    return x.clone()


@keep.register_fake
def _keep_fake(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)


def _keep_backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return gradient, None


keep.register_autograd(_keep_backward)


def training_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The stateless leaf modules whose forward reads the training flag, by qualified name."""
    named = model.named_modules()
    return {name: m for name, m in named if name and _stateless(m) and reads_training(m)}


def _stateless(module: nn.Module) -> bool:
    holds = module._parameters or module._buffers or module._modules
    return not holds and "forward" not in vars(module)


def reads_training(module: nn.Module) -> bool:
    """Whether the forward of a module mentions the training flag."""
    forward = getattr(type(module), "forward", None)  # TorchScript has none that can be read
    code = getattr(inspect.unwrap(forward), "__code__", None) if forward is not None else None
    return code is not None and "training" in code.co_names


class IdentityWatch:
    """Learns from an example run which of the candidate modules are the identity in eval mode."""

    def __init__(self, candidates: Mapping[str, nn.Module]) -> None:
        self._candidates = dict(candidates)
        self._called: set[str] = set()
        self._refuted: set[str] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the calls made in the block."""
        with ExitStack() as stack:
            for name, module in self._candidates.items():
                handle = module.register_forward_hook(partial(self._record, name), with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def identities(self) -> dict[str, nn.Module]:
        """The modules that were called, and returned their one tensor input every time."""
        names = self._called - self._refuted
        return {name: module for name, module in self._candidates.items() if name in names}

    def _record(self, name: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._called.add(name)
        single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        if not (single and isinstance(output, Tensor) and torch.equal(args[0], output)):
            self._refuted.add(name)


@contextmanager
def kept(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Makes the forward of every given module the marker operation, inside the block."""
    for name, module in modules.items():
        module.forward = _marker_in_place(name) if in_place(module) else _marker(name)
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def _marker(name: str) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return keep(x, name)  # type: ignore[no-any-return]

    return forward


def _marker_in_place(name: str) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        # the other users of x see what the module does to it in training
        return x.copy_(keep(x, name))

    return forward


def in_place(module: nn.Module) -> bool:
    """Whether a module writes to its input, as dropout does when asked to."""
    return bool(getattr(module, "inplace", False))


def is_kept(node: object) -> bool:
    """Whether an argument is the result of the marker operation."""
    return isinstance(node, Node) and node.target is keep._opoverload
