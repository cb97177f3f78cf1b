"""What a rewritten module is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """Which of several ways to write the same thing is taken.

    Attributes:
        compiled: Whether a compiler comes next. For it, pointwise convolutions become linear
            layers on a matrix with a row for each pixel, which cost it nothing to make.
        bf16: Whether heavy operations without int8 kernels compute in bfloat16. Those with weights
            of four bits do in any case where no compiler comes next: it can unpack the weights.
        reads_bytes: Whether code that the compiler writes reads uint8 as fast as float32. If not,
            layers give float32 to all but layers, which it rounds and stores as uint8 for those.
    """

    compiled: bool
    bf16: bool = False
    reads_bytes: bool = True

    @property
    def sums(self) -> bool:
        """Whether operators compute the additions behind them, and write over one of the addends.

        A compiler can fuse those with what follows instead, if it reads the addends fast.
        """
        return not (self.compiled and self.reads_bytes)
