"""Latency predicted from arithmetic and memory traffic, without running anything."""

from __future__ import annotations

from dataclasses import dataclass

from fxopt.cost.target import Target

# Of one thread and a millisecond: measured on matrix products and copies that are large enough.
_CPU_PRODUCTS = {"avx512f": 47e6, "avx2": 24e6}
_CPU_BYTES = 27e6
_CPU_CALL_MS = 0.005

# Of the whole device, from the data sheets of A100 and H100.
_CUDA_PRODUCTS = {"sm_80": 9.7e9, "sm_90": 33e9}
_CUDA_BYTES = {"sm_80": 1.5e9, "sm_90": 3.3e9}
_CUDA_CALL_MS = 0.004

_SLOWEST_CPU, _OTHER_GPU = 8e6, "sm_80"


@dataclass(frozen=True)
class Roofline:
    """What bounds a layer's latency (Williams et al., "Roofline", 2009).

    Attributes:
        products: float32 multiply-adds a millisecond.
        bytes: What memory moves a millisecond.
        call: What each layer costs besides, in milliseconds.
        lanes: Outputs that are computed at a time: fewer take as long.
    """

    products: float
    bytes: float
    call: float
    lanes: int

    @classmethod
    def of(cls, target: Target) -> Roofline:
        """That of a target; of one that is not known, that of its like."""
        if target.name == "cuda":
            known = [f for f in target.features if f in _CUDA_PRODUCTS]
            chip = known[0] if known else _OTHER_GPU
            return cls(_CUDA_PRODUCTS[chip], _CUDA_BYTES[chip], _CUDA_CALL_MS, lanes=8)
        wide = next((f for f in _CPU_PRODUCTS if f in target.features), "")
        products = _CPU_PRODUCTS.get(wide, _SLOWEST_CPU)
        lanes = 16 if wide == "avx512f" else 8
        threads = target.threads
        return cls(threads * products, threads * _CPU_BYTES, _CPU_CALL_MS, lanes)

    def milliseconds(self, outputs: int, products_each: float, moved: float) -> float:
        """The predicted latency of one layer.

        Args:
            outputs: Its channels.
            products_each: Multiply-adds for all positions of one of them.
            moved: Bytes of what it takes, of its weights and of what it yields.
        """
        computed = -(-outputs // self.lanes) * self.lanes
        return max(computed * products_each / self.products, moved / self.bytes) + self.call
