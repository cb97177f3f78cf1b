"""Inductor's compilation in two steps: up to the frozen graph, and from there to code.

The first step is Python that traces, rewrites and folds weights; the second generates code and
calls the C++ compiler, or finds what both made of the same graph in Inductor's cache. So the first
may be done while another process does both.

Inductor calls what compiles the graphs of backward passes at a later time, in the contexts that
were those of the first call (``torch/_functorch/_aot_autograd/runtime_wrappers.py``,
``AOTDispatchAutograd``). The same is done here for an inference graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import fx

Compiled = Callable[..., tuple[torch.Tensor, ...]]


class Deferred:
    """A graph with frozen weights, whose code is still to be made.

    Args:
        module: A flat module of ATen; it is Inductor's from now on.
        examples: Inputs that it is compiled for.
        options: Inductor's settings.

    Raises:
        Exception: Whatever Inductor raises.
    """

    def __init__(
        self, module: fx.GraphModule, examples: Sequence[torch.Tensor], options: Mapping[str, Any]
    ) -> None:
        from torch._inductor.compile_fx import compile_fx

        self._second_steps: list[Callable[[], None]] = []
        self._codes: list[Callable[..., Any]] = []
        compiled: Any = compile_fx(
            module, list(examples), inner_compile=self._put_off, config_patches=dict(options)
        )
        self._compiled: Compiled = compiled
        self._options = dict(options)

    def finish(self) -> Compiled:
        """Makes the code; once.

        Raises:
            Exception: Whatever Inductor raises.
        """
        from torch._inductor import config

        with config.patch(self._options):
            for step in self._second_steps:
                step()
        self._second_steps.clear()
        return self._compiled

    def _put_off(self, graph: fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> Any:
        """Called by Inductor to compile a graph: what it returns is called with its inputs."""
        from torch._guards import CompileContext, TracingContext, compile_context, tracing
        from torch._inductor.compile_fx import compile_fx_inner

        number = len(self._codes)
        self._codes.append(_not_yet)
        traced, compiling = TracingContext.try_get(), CompileContext.try_get()
        mode = torch._guards.detect_fake_mode(inputs)

        def second_step() -> None:
            with ExitStack() as stack:
                stack.enter_context(tracing(traced) if traced is not None else nullcontext())
                if compiling is not None:
                    stack.enter_context(compile_context(compiling))
                if mode is not None:  # as for the first step: frozen weights are real tensors
                    stack.enter_context(patch.object(mode, "allow_non_fake_inputs", True))
                self._codes[number] = compile_fx_inner(graph, inputs, **settings)

        self._second_steps.append(second_step)
        return lambda arguments: self._codes[number](arguments)


def _not_yet(arguments: Sequence[Any]) -> Any:
    raise RuntimeError("it is called before its code is made")
