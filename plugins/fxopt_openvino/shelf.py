"""A model that is needed again only when inputs of other sizes come."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import openvino

_FILE = "model.xml"
_WORTH = 32 << 20  # bytes of weights


class Shelf:
    """Holds a model, in memory at first, and once it is put away, in a file without a name.

    What was compiled has the weights in a layout of its own. Keeping them once more, for sizes that
    may never come, would take as much memory again. The file is gone with the process, however
    that ends.

    Args:
        model: What to hold.
        weights: How many bytes its weights take; where those are few, it stays in memory.
    """

    def __init__(self, model: openvino.Model, weights: int) -> None:
        self._model: openvino.Model | None = model
        self._worth = weights >= _WORTH
        self._graph = b""
        self._weights: IO[bytes] | None = None

    def take(self) -> openvino.Model:
        """The model.

        Raises:
            OSError: The file cannot be read.
        """
        return self._model if self._model is not None else self._read()

    def put_away(self) -> None:
        """Moves the model to the file, where that is worth it and there is room for one."""
        if self._model is None or not self._worth:
            return
        try:
            self._graph, self._weights = _written(self._model)
        except (OSError, RuntimeError):  # no room, or the runtime cannot write it: it stays here
            return
        self._model = None

    def _read(self) -> openvino.Model:
        import openvino

        assert self._weights is not None
        size = self._weights.seek(0, 2)
        # The runtime's own memory, which the model keeps alive.
        tensor = openvino.Tensor(openvino.Type.u8, openvino.Shape([size]))
        self._weights.seek(0)
        read = self._weights.readinto(tensor.data)  # type: ignore[attr-defined]
        if read != size:
            raise OSError(f"{read} of {size} bytes of a model could be read")
        return openvino.Core().read_model(model=self._graph, weights=tensor)


def _written(model: openvino.Model) -> tuple[bytes, IO[bytes]]:
    """A model as text, and its weights as an open file that has no name any more."""
    import openvino

    with tempfile.TemporaryDirectory(prefix="fxopt-") as folder:
        path = Path(folder) / _FILE
        openvino.save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").open("rb")
