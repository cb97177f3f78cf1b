"""Captures the largest submodules that can be captured, where the whole model cannot."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxopt.errors import CaptureError, InputError
from fxopt.frontend.capture import capture_program, run_model
from fxopt.frontend.comparing import mismatch
from fxopt.frontend.structure import fast_path_off, set_apart, structural_copy
from fxopt.ir import Program, expected_inputs

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class PartialCapture:
    """A model of which only parts were captured.

    Attributes:
        model: A structural copy of the user's model, in eval mode.
        parts: The captured submodules, by qualified name, in the order of `named_modules`.
        inputs: What each part was called with first, as (args, kwargs), by the same names.
        python: Names of the submodules with parameters that stay Python, and why.
    """

    model: nn.Module
    parts: Mapping[str, Program]
    inputs: Mapping[str, Inputs]
    python: tuple[tuple[str, str], ...]

    def install(self, name: str, module: nn.Module) -> None:
        """Puts a module in the place of a part; calls of other sizes still reach the original.

        Args:
            name: The name of the part.
            module: Takes the part's inputs as the user's module does.
        """
        original = self.model.get_submodule(name)
        part = GuardedPart(original, module, self.parts[name])
        self.model.set_submodule(name, part)


class GuardedPart(nn.Module):
    """Calls the optimized module where the inputs fit what was captured, else the original.

    To the Python around it, it is the original in all else: of its class, with its attributes,
    methods and items.

    Args:
        original: The user's submodule.
        optimized: What replaces it.
        program: The captured program, whose placeholders say which sizes fit.
    """

    def __init__(self, original: nn.Module, optimized: nn.Module, program: Program) -> None:
        super().__init__()
        self.fxopt_part = optimized  # state_dict leaves this part of the name out
        # not registered: the optimized module holds the weights, the state_dict need not repeat
        self.__dict__["original"] = original
        self._signature = program.signature
        self._expected = expected_inputs(program.inputs)
        self._outdated = False
        self.register_load_state_dict_post_hook(_outdate)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls one of the two modules.

        Raises:
            InputError: The inputs have other sizes, and only the optimized module's weights are
                what was loaded.
        """
        if self.fits(args, kwargs):
            return self.fxopt_part(*args, **kwargs)
        if self._outdated:
            raise InputError(
                "a part is called with sizes that it was not optimized for, and weights were "
                "loaded since, which only the optimized part has",
                hint="load the weights into the original model and optimize that",
            )
        return self.__dict__["original"](*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        original = self.__dict__["original"]
        set_apart([original], original)  # its parameters are the user's
        original._apply(fn, recurse)
        applied: Self = super()._apply(fn, recurse)
        return applied

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether inputs have the nesting, sizes and dtypes that were captured."""
        try:
            flat = self._signature.flatten(args, kwargs)
        except InputError:
            return False
        pairs = zip(self._expected, flat, strict=True)
        return all(expected.mismatch(leaf) is None for expected, leaf in pairs)

    @property  # type: ignore[misc]
    def __class__(self) -> type[nn.Module]:  # type: ignore[override]
        """What isinstance sees: a model may tell its layers apart by their class."""
        return type(self.__dict__["original"]) if "original" in self.__dict__ else GuardedPart

    def __getattr__(self, name: str) -> Any:
        original = self.__dict__.get("original")
        # how to copy and to pickle is the part's own matter
        if original is None or name in self._modules or name.startswith("__"):
            return super().__getattr__(name)
        return getattr(original, name)

    def __getitem__(self, index: Any) -> Any:
        return self.__dict__["original"][index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__dict__["original"])

    def __len__(self) -> int:
        return len(self.__dict__["original"])

    def __bool__(self) -> bool:
        return bool(self.__dict__["original"])

    def __reduce__(self) -> tuple[Any, ...]:
        # by default pickle would make one of the class that isinstance sees
        return _blank_part, (), self.__dict__


def _outdate(part: nn.Module, _: object) -> None:
    part.__dict__["_outdated"] = True


def _blank_part() -> GuardedPart:
    return GuardedPart.__new__(GuardedPart)


def capture_parts(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> PartialCapture:
    """Captures the largest capturable submodules of a model, on the inputs of an example run.

    A part is accepted only when it computes what the submodule computed in every recorded call
    that it fits. Submodules without parameters are left alone.

    Args:
        model: The model; it is not touched.
        args: Example positional inputs.
        kwargs: Example keyword inputs.

    Raises:
        CaptureError: No submodule can be captured.
    """
    search = _Search(structural_copy(model), (args, kwargs))
    search.run()
    if not search.parts:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in search.python[:3])
        raise CaptureError(
            f"no part of {type(model).__name__} can be captured: {reasons or 'it has no parts'}",
            hint="check that its submodules are called through their forward",
        )
    order = {name: i for i, (name, _) in enumerate(search.model.named_modules())}
    parts = OrderedDict(sorted(search.parts.items(), key=lambda item: order[item[0]]))
    return PartialCapture(search.model, parts, search.part_inputs, tuple(search.python))


@dataclass
class _Call:
    """What went into a submodule and what came out."""

    inputs: Inputs
    outputs: list[Any]
    autocast: bool


@dataclass
class _Search:
    """Descends into the submodules, a level at a time."""

    model: nn.Module
    inputs: Inputs
    parts: dict[str, Program] = field(default_factory=dict)
    part_inputs: dict[str, Inputs] = field(default_factory=dict)
    python: list[tuple[str, str]] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    def run(self) -> None:
        """Tries the children of the model, then the children of those that failed."""
        level = self._children("")
        while level:
            calls = self._record(level)
            failed = [name for name in level if not self._try(name, calls[name])]
            level = [child for name in failed for child in self._children(name)]

    def _children(self, parent: str) -> list[str]:
        found = []
        for field_name, child in self.model.get_submodule(parent).named_children():
            has_parameters = any(True for _ in child.parameters())
            if not has_parameters or id(child) in self._seen:
                continue
            self._seen.add(id(child))
            name = f"{parent}.{field_name}" if parent else field_name
            if isinstance(child, torch.jit.ScriptModule):  # which takes no hooks
                self.python.append((name, "it is TorchScript"))
            else:
                found.append(name)
        return found

    def _record(self, names: list[str]) -> dict[str, list[_Call]]:
        """Runs the model on the example inputs and records the calls of some submodules."""
        calls: dict[str, list[_Call]] = {name: [] for name in names}
        with ExitStack() as stack:
            for name in names:
                module = self.model.get_submodule(name)
                stack.enter_context(_recording(module, calls[name]))
            run_model(self.model, self.inputs)
        return calls

    def _try(self, name: str, calls: list[_Call]) -> bool:
        module = self.model.get_submodule(name)
        if not calls:
            if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                self.python.append((name, "the example run does not call it"))
            return False
        try:
            program = capture_program(module, *calls[0].inputs)
            fitting = _check_calls(module, program, calls)
        except CaptureError as error:
            self.python.append((name, _reason(calls, error)))
            return False
        if fitting < len(calls):
            note = f"fits {fitting} of {len(calls)} recorded calls; the others stay Python"
            program = Program(program.module, program.signature, (*program.notes, note))
        self.parts[name] = program
        self.part_inputs[name] = calls[0].inputs
        return True


def _reason(calls: list[_Call], error: CaptureError) -> str:
    """Why a part stays Python: one that autocast reaches from outside differs in its dtypes."""
    if any(call.autocast for call in calls):
        return f"it is called inside of torch.autocast, by what stays Python ({error.what})"
    return error.what


@contextmanager
def _recording(module: nn.Module, calls: list[_Call]) -> Iterator[None]:
    """Records calls by hooks; copies, because what is passed around may be written to later."""

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(_Call(_copied((args, kwargs)), [], _casts((args, kwargs))))

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[-1].outputs.extend(pytree.tree_leaves(_copied(output)))

    # the hook that runs first sees what the caller passed
    handles = (
        module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        module.register_forward_hook(after, with_kwargs=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _casts(inputs: Inputs) -> bool:
    """Whether autocast is on for the devices of the inputs."""
    leaves = pytree.tree_leaves(inputs)
    devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
    capable = filter(torch.amp.is_autocast_available, devices)  # of others, torch cannot be asked
    return any(map(torch.is_autocast_enabled, capable))


def _copied(tree: Any) -> Any:
    return pytree.tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, tree
    )


def _check_calls(module: nn.Module, program: Program, calls: list[_Call]) -> int:
    """Compares a part with every recorded call that it fits; returns how many those are.

    Raises:
        CaptureError: It computes something else.
    """
    guard = GuardedPart(module, program.module, program)
    fitting = [call for call in calls if guard.fits(*call.inputs)]
    for call in fitting:
        with torch.no_grad(), fast_path_off():
            actual = program(*program.signature.flatten(*call.inputs))
        difference = mismatch(actual, call.outputs)
        if difference:
            raise CaptureError(f"the captured part differs from a recorded call: {difference}")
    return len(fitting)
