"""What a model is compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """How the runtime is to run a model.

    Attributes:
        threads: How many threads a call may use.
        precision: What floating-point operations are computed in: ``f32`` or ``bf16``.
        streams: How many calls may run side by side, each on its share of the threads.
        rounded_group: How many neighbours in what linear layers take share a scale, where that is
            rounded to int8 on each call; 0 where it is not.
    """

    threads: int
    precision: str
    streams: int = 1
    rounded_group: int = 0

    def properties(self) -> dict[str, Any]:
        """The same by OpenVINO's names.

        Where weights are compressed, the runtime would round activations unasked.
        """
        latency: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        return {
            **(latency if self.streams == 1 else {"NUM_STREAMS": self.streams}),
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": self.rounded_group,
        }
