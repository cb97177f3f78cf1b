"""Programs as files: one safetensors file with weights and graph, which holds no code."""

from fxopt.ir.saving.container import read_container, write_container
from fxopt.ir.saving.loading import load_beside, load_program
from fxopt.ir.saving.storing import save_program
from fxopt.ir.saving.tensors import TensorReader, TensorWriter
from fxopt.ir.saving.values import decode, encode

__all__ = [
    "TensorReader",
    "TensorWriter",
    "decode",
    "encode",
    "load_beside",
    "load_program",
    "read_container",
    "save_program",
    "write_container",
]
