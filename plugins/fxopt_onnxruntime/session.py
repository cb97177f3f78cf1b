"""A session of ONNX Runtime: the optimized graph, its settings, and what ran in it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxopt.plugin import BackendError, Kernel, Target
from fxopt_onnxruntime.kernels import find_kernels

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

MODEL = "model.onnx"
"""The file of a model in its folder."""

# A protocol buffer holds 2 GiB; from here on weights go to a file beside the model.
_LARGE = 1536 << 20
# Without one of these, sums of products of uint8 and int8 overflow in 16 bits. The runtime then
# has kernels that do not, on demand; with one of these, they are four times as slow.
_WIDE_SUMS = {"avx_vnni", "avx512_vnni", "amx_int8"}

_FATAL = 4  # errors are raised as well, so the runtime need not print them


class Session:
    """A model, optimized by ONNX Runtime for the CPU; safe to run from any thread.

    Attributes:
        runtime: The session itself.
        input_names: Names of the inputs, in order.
        output_names: Names of the outputs, in order.
        kernels: Which operations ran when it was first run; see :meth:`probe`.

    Args:
        model: What to run, or its file.
        target: The CPU, and how many threads a call may use.
        spinning: Whether idle threads go on waiting in a loop between calls.

    Raises:
        BackendError: ONNX Runtime refuses the model.
    """

    def __init__(self, model: ir.Model | Path, target: Target, spinning: bool) -> None:
        # The profile is written here, and read and deleted by the first call of `probe`.
        self._folder = tempfile.TemporaryDirectory(prefix="fxopt_onnxruntime_")
        self.runtime = _start(model, self._options(target, spinning), Path(self._folder.name))
        self.input_names = [item.name for item in self.runtime.get_inputs()]
        self.output_names = [item.name for item in self.runtime.get_outputs()]
        self.kernels: tuple[Kernel, ...] = ()

    def probe(self, inputs: list[torch.Tensor]) -> list[Any]:
        """Runs the model; the first time, :attr:`kernels` is read from the runtime's profile.

        Args:
            inputs: Contiguous tensors.

        Returns:
            Arrays of numpy, one for each output.

        Raises:
            BackendError: ONNX Runtime cannot run the model on such inputs.
        """
        arrays = [tensor.numpy() for tensor in inputs]
        try:
            outputs = self.runtime.run(
                self.output_names, dict(zip(self.input_names, arrays, strict=True))
            )
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime cannot run the program: {first_line(error)}"
            ) from error
        if not self.kernels:
            self.kernels = find_kernels(json.loads(Path(self.runtime.end_profiling()).read_text()))
            self._folder.cleanup()
        return list(outputs)

    def _options(self, target: Target, spinning: bool) -> onnxruntime.SessionOptions:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = target.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _FATAL
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        options.add_session_config_entry("session.force_spinning_stop", str(int(not spinning)))
        if not _WIDE_SUMS & set(target.features):
            options.add_session_config_entry("session.x64quantprecision", "1")
        return options


def first_line(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:500]


def _start(
    model: ir.Model | Path, options: onnxruntime.SessionOptions, folder: Path
) -> onnxruntime.InferenceSession:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(
            _serialized(model, folder), options, providers=["CPUExecutionProvider"]
        )
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
