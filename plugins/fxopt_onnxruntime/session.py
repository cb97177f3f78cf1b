"""A session of ONNX Runtime: the optimized graph, its settings, and what ran in it."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxopt.plugin import BackendError, Kernel, Target, Tensors, keep_files
from fxopt_onnxruntime.kernels import find_kernels

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

MODEL = "model.onnx"
"""The file of a model in its folder."""

_PROFILE = "profile.json"

# A protocol buffer holds 2 GiB; from here on weights go to a file beside the model.
_LARGE = 1536 << 20

_FATAL = 4  # errors are raised as well, so the runtime need not print them


class Session:
    """A model, optimized by ONNX Runtime for the CPU; safe to run from any thread.

    Attributes:
        runtime: The session itself.
        input_names: Names of the inputs, in order.
        output_names: Names of the outputs, in order.
        kernels: Which operations run.

    Args:
        model: What to run, or its file.
        inputs: Of the model, to see what runs.
        target: The CPU, and how many threads a call may use.
        spinning: Whether idle threads go on waiting in a loop between calls.
        key: Names the model among those of the programs that are built now.

    Raises:
        BackendError: ONNX Runtime refuses the model, or cannot run it on ``inputs``.
    """

    def __init__(
        self, model: ir.Model | Path, inputs: Tensors, target: Target, spinning: bool, key: str
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="fxopt_onnxruntime_") as name:
            source = _serialized(model, Path(name))
            self.kernels = _profiled(source, inputs, target, key)
            self.runtime = _start(source, _options(target, spinning))
        self.input_names, self.output_names = _names(self.runtime)

    def probe(self, inputs: Tensors) -> list[Any]:
        """Runs the model.

        Args:
            inputs: Of any strides.

        Returns:
            Arrays of numpy, one for each output.

        Raises:
            BackendError: ONNX Runtime cannot run the model on such inputs.
        """
        return _run(self.runtime, inputs)


def _options(target: Target, spinning: bool) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.force_spinning_stop", str(int(not spinning)))
    if target.saturates:  # on demand there are kernels that do not, elsewhere four times as slow
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _profiled(source: bytes | str, inputs: Tensors, target: Target, key: str) -> tuple[Kernel, ...]:
    """What runs, from a profile that is written once for all builds of a program.

    It is that of a session of its own: one that has ever written a profile is slower ever after,
    an LSTM of 64 steps by 2 %.
    """
    said = repr(([tensor.shape for tensor in inputs], target, key))
    write = functools.partial(_write_profile, source, inputs, target)
    kept = keep_files(f"onnxruntime-{hashlib.sha256(said.encode()).hexdigest()}", write)
    if kept is not None:
        return _read_profile(kept)
    with tempfile.TemporaryDirectory(prefix="fxopt_onnxruntime_") as name:
        write(Path(name))
        return _read_profile(Path(name))


def _write_profile(source: bytes | str, inputs: Tensors, target: Target, folder: Path) -> None:
    options = _options(target, spinning=False)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    runtime = _start(source, options)
    _run(runtime, inputs)
    Path(runtime.end_profiling()).rename(folder / _PROFILE)


def _read_profile(folder: Path) -> tuple[Kernel, ...]:
    return find_kernels(json.loads((folder / _PROFILE).read_text()))


def _run(runtime: onnxruntime.InferenceSession, inputs: Tensors) -> list[Any]:
    names, results = _names(runtime)
    arrays = [tensor.detach().contiguous().numpy() for tensor in inputs]
    try:
        return list(runtime.run(results, dict(zip(names, arrays, strict=True))))
    except Exception as error:
        raise BackendError(f"ONNX Runtime cannot run the program: {first_line(error)}") from error


def _names(runtime: onnxruntime.InferenceSession) -> tuple[list[str], list[str]]:
    return [i.name for i in runtime.get_inputs()], [o.name for o in runtime.get_outputs()]


def first_line(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:500]


def _start(
    source: bytes | str, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(f"ONNX Runtime refuses the program: {first_line(error)}") from error


def _serialized(model: ir.Model | Path, folder: Path) -> bytes | str:
    if isinstance(model, Path):
        return str(model)
    import onnx_ir as ir

    if is_large(model):
        save(model, folder)
        return str(folder / MODEL)
    serialized: bytes = ir.to_proto(model).SerializeToString()
    return serialized


def save(model: ir.Model, folder: Path) -> None:
    """Writes a model as :data:`MODEL`; weights go to a file beside it only if they must.

    The runtime would map such a file into memory, where weights are slower to read.
    """
    import onnx_ir as ir

    ir.save(model, folder / MODEL, external_data="model.data" if is_large(model) else None)


def is_large(model: ir.Model) -> bool:
    """Whether a model does not fit into a protocol buffer."""
    values = model.graph.initializers.values()
    stored = sum(value.const_value.nbytes for value in values if value.const_value is not None)
    return stored >= _LARGE
