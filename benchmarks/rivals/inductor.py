"""torch.compile with weights that are really frozen, and a check that they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rivals.base import Inputs

Function = Callable[..., torch.Tensor]


class NotFrozenError(RuntimeError):
    """The generated code takes its weights as arguments."""


class Compiled:
    """A call of a model that ``torch.compile`` has compiled with frozen weights.

    ``torch.compile(options={"freezing": True})`` does not freeze: Dynamo has lifted the weights
    into arguments before it is read. Inductor's configuration has to say so while Dynamo traces.

    Args:
        model: What to compile.
        inputs: What to call it on.
        autocast: Whether to run it in bf16 where autocast would.
        mode: As of ``torch.compile``.
        settings: More of Inductor's configuration.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        *,
        autocast: bool = False,
        mode: str | None = None,
        **settings: Any,
    ) -> None:
        self._compiled = torch.compile(_function(model, autocast), dynamic=False, mode=mode)
        self._inputs, self._settings = inputs, settings
        self.warm()

    def __call__(self) -> torch.Tensor:
        return self._compiled(*self._inputs)

    def warm(self) -> None:
        """Compiles what is not compiled, at first, or after Dynamo has been reset.

        Every strict ``torch.export`` resets it. What is then compiled by the next call, without
        this, is not frozen.
        """
        import torch._inductor.config as inductor

        frozen = inductor.patch(freezing=True, **self._settings)
        with frozen, _recurrent_captured(), torch.no_grad(), _code_shown() as shown:
            self()
        if shown and not any("_frozen_param" in code for code in shown):
            raise NotFrozenError("weights were not frozen")


def _function(model: nn.Module, autocast: bool) -> Function:
    """The model as a function with a code object of its own.

    Dynamo keeps what it compiled by code object. Candidates of one class would share that of
    ``forward``, its limit on recompilation, and the guards that each call goes through.
    """
    body = "return model(*inputs)"
    if autocast:
        body = f'with torch.autocast("cpu", torch.bfloat16):\n        {body}'
    scope: dict[str, Any] = {"model": model, "torch": torch}
    exec(f"def call(*inputs):\n    {body}", scope)
    function: Function = scope["call"]
    return function


@contextmanager
def _recurrent_captured() -> Iterator[None]:
    """Dynamo breaks its graph at an LSTM by default."""
    import torch._dynamo.config as dynamo

    with dynamo.patch(allow_rnn=True):
        yield


@contextmanager
def _code_shown() -> Iterator[list[str]]:
    """Collects the text of the modules that Inductor writes."""
    from torch._inductor.graph import GraphLowering

    shown: list[str] = []
    before = getattr(GraphLowering, "save_output_code", None)
    GraphLowering.save_output_code = shown.append
    try:
        yield shown
    finally:
        GraphLowering.save_output_code = before
