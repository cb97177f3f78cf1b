"""What a rewritten module is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """Which of several ways to write the same thing is taken.

    Attributes:
        compiled: Whether a compiler comes next.
        bf16: Whether heavy operations without int8 kernels compute in bfloat16. Those with weights
            of four bits do in any case where no compiler comes next: it can unpack the weights.
        wide: Whether the CPU has AVX-512, or none of x86's vectors.
    """

    compiled: bool
    bf16: bool = False
    wide: bool = True

    @property
    def reads_bytes(self) -> bool:
        """Whether code between layers reads uint8 as fast as float32.

        On AVX2, Inductor's vectors of bytes are filled through the stack, and each load waits for
        the store before it: a product in regnet_y_400mf took 1.4 ms on bytes, and 0.2 on floats. So
        there, layers give float32 to all but layers, which it rounds and stores as uint8 for those.
        """
        return self.wide or not self.compiled

    @property
    def sums(self) -> bool:
        """Whether operators compute the additions behind them, and write over one of the addends.

        A compiler can fuse those with what follows instead, if it reads the addends fast.
        """
        return not self._fuses

    @property
    def rows(self) -> bool:
        """Whether pointwise convolutions become linear layers with a row for each pixel.

        These rows cost a compiler nothing to make, and Inductor can write such products itself. But
        without AVX-512, oneDNN's linear kernels are the slower ones: mobilenet_v2 at batch 8 took
        71 ms with them, and 40 with convolutions.
        """
        return self._fuses

    @property
    def pools(self) -> bool:
        """Whether an operator pools the maxima of bytes.

        What a compiler writes for that without AVX-512 takes 6 ms in resnet18 at batch 8, and
        torch's operator 0.8.
        """
        return not self._fuses

    @property
    def _fuses(self) -> bool:
        """Whether a compiler comes next that writes fast code for bytes."""
        return self.compiled and self.wide
