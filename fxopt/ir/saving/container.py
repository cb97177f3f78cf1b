"""The file around it all: tensors and a JSON document in one safetensors file."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from fxopt.errors import SavingError
from fxopt.ir.paged import paged

VERSION = 1
"""Of the format. A file of a newer one is refused; older ones can be read."""


def write_container(
    path: str | os.PathLike[str],
    kind: str,
    document: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Writes a file; one that is there is replaced, or left as it is where writing fails.

    Args:
        path: Where.
        kind: What the file is, such as ``program``.
        document: What JSON can hold.
        tensors: Contiguous ones that share no memory.

    Raises:
        SavingError: The file cannot be written.
    """
    text = json.dumps(document)
    metadata = {
        "format": f"fxopt-{kind}",
        "version": str(VERSION),
        "checksum": str(zlib.crc32(text.encode())),
        "document": text,
    }
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        safetensors.torch.save_file(dict(tensors), beside, metadata)
        beside.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise SavingError(f"{path} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def read_container(
    path: str | os.PathLike[str], kind: str, *, pageable: bool = False
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The document and the tensors of a file.

    Args:
        path: The file.
        kind: What it should be.
        pageable: Whether the memory of large tensors should be such as the system can take back.

    Raises:
        SavingError: It cannot be read, is not of this kind, is damaged, or of a newer version.
    """
    document = read_document(path, kind)
    with _explained(path), safetensors.safe_open(path, framework="pt") as file:
        names = file.keys()
        # Copied: what lies in a mapped file changes with the file, and is not where kernels like
        # it, at multiples of 64 bytes: they compute more slowly there, and round otherwise.
        copied = paged if pageable else torch.clone
        tensors = {name: copied(file.get_tensor(name)) for name in names}
    return document, tensors


def read_document(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The document of a file, without the tensors.

    Raises:
        SavingError: As for :func:`read_container`.
    """
    with _explained(path):
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        _check(metadata, path, kind)
        document: dict[str, Any] = json.loads(metadata["document"])
    return document


def _check(metadata: Mapping[str, str], path: str | os.PathLike[str], kind: str) -> None:
    if metadata.get("format") != f"fxopt-{kind}":
        raise SavingError(f"{path} is no {kind} that fxopt has saved")
    version = metadata.get("version", "")
    if not version.isdecimal() or int(version) > VERSION:
        raise SavingError(
            f"{path} has format version {version}; this fxopt reads up to {VERSION}",
            hint="update fxopt",
        )
    if str(zlib.crc32(metadata["document"].encode())) != metadata.get("checksum"):
        raise SavingError(f"{path} is damaged: its graph is not what was written")


@contextlib.contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SavingError(f"{path} cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise SavingError(f"{path} is damaged, or no safetensors file: {error}") from error
