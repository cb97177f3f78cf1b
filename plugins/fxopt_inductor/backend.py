"""Lowers through Inductor: export with fixed sizes, then compile with frozen weights.

Dynamo is left out. What it captures again is a program already, and its guards would recompile
without being asked, or fall back to eager where there is a limit to that.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import fx

from fxopt.plugin import (
    Backend,
    BackendError,
    BackendInfo,
    Executable,
    Kernel,
    LeafModule,
    Lowering,
    Program,
    Roofline,
    Target,
    Tensors,
    multiply_adds,
    size_hint,
)
from fxopt_inductor.deferred import Compiled, Deferred
from fxopt_inductor.flat import flat_module, plain
from fxopt_inductor.graph_cache import packed_weights_cached
from fxopt_inductor.kernels import HEAVY_KINDS, read_kernels
from fxopt_inductor.linear_kernels import being_measured_elsewhere, faster_as_convolutions
from fxopt_inductor.linears import as_convolutions, fold_rows, lives_by_linears
from fxopt_inductor.lowp import Form, heavy_kernels, is_quantized, missing_operators, rewrite
from fxopt_inductor.lowp.safety import compiler_sees_addends, protect_addends
from fxopt_inductor.parsed import templates_parsed_once
from fxopt_inductor.templates import may_pay
from fxopt_inductor.toolchain import (
    instructions_assembled,
    knows_instructions,
    missing_toolchain,
)

Sizes = tuple[tuple[torch.Size, torch.dtype], ...]
Precision = Literal["f32", "bf16"]
Products = Literal["library", "template", "autotune"]

# What a call from C++ saves against one from Python (torch.compile of resnet50 in bfloat16: 1.4 ms
# of 25.3 in 122 calls); what share of the latency is worth it.
_CALL_MS = 0.01
_WORTH = 0.02

# Peaks of products over those in float32, on Xeons with VNNI and AVX512-BF16, and with AMX.
_FASTER = {"f32": 1.0, "bf16": 2.2, "int8": 4.8}
_FASTER_AMX = {"f32": 1.0, "bf16": 8.0, "int8": 12.0}

_BF16_FEATURES = {"avx512_bf16", "amx_bf16"}
_LOW = {"bf16", "int4"}  # what computes on bfloat16
_PRODUCTS: dict[str, dict[str, Any]] = {
    "library": {},
    "template": {"max_autotune_gemm": True, "max_autotune_gemm_backends": "CPP"},
    "autotune": {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"},
}

# Seconds in which a worker has measured what it measures before it compiles.
_PATIENCE = 10.0

# Inductor's configuration and the hook that shows its code are one per process.
_COMPILING = threading.Lock()


@dataclass(frozen=True)
class Inductor(Backend):
    """Compiles to C++ with weights frozen, folded and packed for oneDNN.

    Layers that the program holds in int8 run on oneDNN's int8 operators. What is left computes
    in ``precision``.

    Attributes:
        precision: Of convolutions, matrix products and attention that are not in int8.
        products: Who computes matrix products: oneDNN, or in float32 MKL where that is faster
            (``library``); in int8 code that Inductor writes, in which they fuse with all that
            follows (``template``); or whichever of both is faster in a trial of each
            (``autotune``), which also tries the float ones.
        cpp_wrapper: Whether the code that calls the kernels is C++, which calls faster than
            Python and takes longer to compile.
    """

    precision: Precision = "f32"
    products: Products = "library"
    cpp_wrapper: bool = False

    info: ClassVar[BackendInfo] = BackendInfo(
        name="inductor",
        targets=("cpu",),
        extra="install g++ and Python's headers",
        builds_slowly=True,
    )

    @property
    def label(self) -> str:
        """The name, with the settings that are not the usual ones."""
        settings: list[str] = [] if self.precision == "f32" else [self.precision]
        settings += [self.products] if self.products != "library" else []
        settings += ["c++"] if self.cpp_wrapper else []
        return " ".join([self.info.name, *settings])

    def variants(self, program: Program, target: Target, exact: bool) -> Sequence[Backend]:
        """Float32; for lossy programs bfloat16 as well, on CPUs that have instructions for it.

        Where the arithmetic at the machine's peak takes so little time that calls matter, they are
        compiled to C++ from the beginning, which saves a build.
        """
        has_bf16 = bool(_BF16_FEATURES & set(target.features)) and not exact
        settings = (self, replace(self, precision="bf16")) if has_bf16 else (self,)
        return tuple(each.calling(program, each._at_best(program, target)) for each in settings)

    def tunings(
        self, program: Program, inputs: Tensors, target: Target, milliseconds: float
    ) -> Sequence[Backend]:
        """What calls faster, or computes products faster, and takes long to compile.

        Quantized nets of small layers are several times as fast with products of Inductor's own,
        and large ones with the library's.
        """
        if self.products != "library":
            return ()
        calling = self.calling(program, milliseconds)
        faster_calls = () if calling == self else (calling,)
        if _holds_int8(program):
            return (*faster_calls, *replace(self, cpp_wrapper=True).templates(program, target))
        return faster_calls

    def spare(self) -> Backend | None:
        """Calls from Python, of whatever operator there is."""
        return replace(self, cpp_wrapper=False) if self.cpp_wrapper else None

    def calling(self, program: Program, milliseconds: float) -> Inductor:
        """The same; calls are compiled if they matter to what takes so many milliseconds."""
        calls = sum(node.op.startswith("call_") for node in program.nodes)
        matter = calls * _CALL_MS > _WORTH * milliseconds
        return replace(self, cpp_wrapper=self.cpp_wrapper or matter)

    def _at_best(self, program: Program, target: Target) -> float:
        """Milliseconds of the arithmetic alone, at the machine's peak."""
        precision = "int8" if _holds_int8(program) else self.precision
        faster = _FASTER_AMX if "amx_bf16" in target.features else _FASTER
        peak = faster[precision] * Roofline.of(target).products
        captured = sum(multiply_adds(program).values()) / peak
        return captured / 2 if _may_have_one_row(program) else captured

    def templates(self, program: Program, target: Target) -> tuple[Inductor, ...]:
        """The same with int8 products of its own, where these may be the faster ones."""
        return (replace(self, products="template"),) if may_pay(program, target) else ()

    def unavailable(self) -> str | None:
        return missing_toolchain()

    def lower(self, program: Program, inputs: Tensors, target: Target) -> Lowering:
        return InductorLowering(program, self, _is_wide(target))


class InductorLowering(Lowering):
    """The program itself: Inductor's code is for fixed sizes.

    Args:
        program: What to compile.
        settings: How.
        wide: Whether the CPU has AVX-512, or none of x86's vectors.
    """

    def __init__(self, program: Program, settings: Inductor, wide: bool) -> None:
        self._program = program
        self._settings = settings
        self._wide = wide
        self._prepared: _Prepared | None = None

    def prepare(self, inputs: Tensors) -> None:
        """All but the code: the weights are frozen, and a worker may have put it in the cache."""
        if self._has_linears_to_measure() and being_measured_elsewhere(_PATIENCE):
            raise BackendError("linear layers are still being measured")
        examples = [plain(tensor) for tensor in inputs]
        module = self._lowered(self._exported(examples), _PATIENCE)
        layers = heavy_kernels(module)
        with _COMPILING, torch.no_grad(), instructions_assembled():
            frozen = Deferred(module, examples, self._options())
        self._prepared = _Prepared(_sizes(inputs), layers, frozen)

    def compile(self, inputs: Tensors) -> Executable:
        # Detached and dense, as later inputs will be; else their strides would become the code's.
        examples = [plain(tensor) for tensor in inputs]
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared.sizes == _sizes(inputs):
            try:
                return _executable(prepared.frozen.finish, prepared.layers)
            except BackendError as error:
                warnings.warn(f"compiled anew, which takes longer: {error.what}", stacklevel=2)
        module = self._lowered(self._exported(examples))
        options = self._options()
        compile_all = partial(torch._inductor.compile, module, [*examples], options=options)
        return _executable(compile_all, heavy_kernels(module))

    def _exported(self, examples: Tensors) -> fx.GraphModule:
        module = flat_module(self._program, examples)
        fold_rows(module)
        return module

    def _lowered(self, module: fx.GraphModule, patience: float | None = None) -> fx.GraphModule:
        """The same as it is compiled; it is this object's own, and changed.

        Args:
            module: As it was exported.
            patience: Seconds to wait for what another process measures; None to do so here.
        """
        bf16, quantized = self._settings.precision == "bf16", is_quantized(module)
        if not bf16 and not quantized:
            if self._has_linears_to_measure():
                layers = faster_as_convolutions(module, patience)
                if layers is None:
                    raise BackendError("it is not known yet which linear layers are convolutions")
                as_convolutions(module, layers)
            return module
        if quantized and (missing := missing_operators()):
            raise BackendError(missing)
        form = Form(compiled=True, bf16=bf16, wide=self._wide)
        rewritten = rewrite(module, form)
        if form.sums:
            protect_addends(rewritten.graph)
            rewritten.recompile()
            compiler_sees_addends()
        kernels = heavy_kernels(rewritten).values()
        if bf16 and not any(kernel.precision in _LOW for kernel in kernels):
            raise BackendError("no heavy operation is left for bfloat16")
        return rewritten

    def _has_linears_to_measure(self) -> bool:
        in_float = self._settings.precision == "f32" and not _holds_int8(self._program)
        return in_float and lives_by_linears(self._program)

    def _options(self) -> dict[str, Any]:
        """Inductor's own settings; sizes are not checked on each call: they are those compiled."""
        options: dict[str, Any] = {"freezing": True, "size_asserts": False}
        options |= _PRODUCTS[self._settings.products]
        options |= {"cpp.vec_isa_ok": True} if knows_instructions() else {}
        return options | {"cpp_wrapper": self._settings.cpp_wrapper}


@dataclass(frozen=True)
class _Prepared:
    """What was done ahead for inputs of some sizes."""

    sizes: Sizes
    layers: Mapping[str, Kernel]
    frozen: Deferred


class InductorExecutable(Executable):
    """Compiled code.

    Args:
        compiled: What Inductor returned.
        code: Text of the module that it wrote; empty if that could not be seen.
        layers: The heavy operations of the graph that it compiled, by the names of their nodes.
    """

    def __init__(self, compiled: Compiled, code: str, layers: Mapping[str, Kernel]) -> None:
        self._compiled = compiled
        self._layers = layers
        self.code = code

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return tuple(self._compiled(*map(plain, inputs)))

    def kernels(self) -> tuple[Kernel, ...]:
        return read_kernels(self.code, self._layers)

    def precisions(self) -> Counter[str]:
        heavy = (kernel for kernel in self.kernels() if kernel.kind in HEAVY_KINDS)
        return Counter(kernel.precision for kernel in heavy)


def _executable(compile_all: Callable[[], Any], layers: Mapping[str, Kernel]) -> Executable:
    """What Inductor makes when it is called.

    Raises:
        BackendError: It fails.
    """
    try:
        with (
            _COMPILING,
            torch.no_grad(),
            packed_weights_cached(),
            templates_parsed_once(),
            instructions_assembled(),
            _forgotten(),
            _code_shown() as shown,
        ):
            compiled = compile_all()
    except Exception as error:  # its errors have no common base
        raise BackendError(f"Inductor cannot compile the program: {error}") from error
    return InductorExecutable(compiled, "\n".join(shown), layers)


def _sizes(inputs: Tensors) -> Sizes:
    return tuple((tensor.shape, tensor.dtype) for tensor in inputs)


def _is_wide(target: Target) -> bool:
    return "avx2" not in target.features or "avx512f" in target.features


def _may_have_one_row(program: Program) -> bool:
    """Whether it was captured with two rows, as a batch of one is."""
    shapes = [
        n.meta["val"].shape for n in program.inputs if isinstance(n.meta["val"], torch.Tensor)
    ]
    rows = [shape[0] for shape in shapes if shape and isinstance(shape[0], torch.SymInt)]
    return any(size_hint(each) == 2 for each in rows)


def _holds_int8(program: Program) -> bool:
    leaves = (m for m in program.module.modules() if isinstance(m, LeafModule))
    return any(leaf.precision == "int8" for leaf in leaves)


@contextmanager
def _forgotten() -> Iterator[None]:
    """Lets the modules that Inductor writes go with the code that is called.

    It lists them for as long as the process lives, and they hold the frozen weights.
    """
    from torch._inductor.codecache import PyCodeCache

    written = PyCodeCache.modules
    known = len(written)
    try:
        yield
    finally:
        for module in written[known:]:
            sys.modules.pop(module.__name__, None)
        del written[known:]


@contextmanager
def _code_shown() -> Iterator[list[str]]:
    """Collects the text of the modules that Inductor writes, also those from its cache."""
    from torch._inductor.graph import GraphLowering

    shown: list[str] = []
    before = getattr(GraphLowering, "save_output_code", None)
    GraphLowering.save_output_code = shown.append
    try:
        yield shown
    finally:
        GraphLowering.save_output_code = before
