"""On which programs products of bytes that Inductor writes itself are worth a try."""

from __future__ import annotations

from fxopt.plugin import LeafModule, Program, Target, multiply_adds

# Where the CPU has none of these, such products run on float32 vectors: mobilenet_v2 took 178 ms on
# AVX2, and 11 with the library's.
_FEATURES = {"avx512_vnni", "amx_int8"}

# They save calls and fuse with all that follows, and the library multiplies faster. On the machines
# with VNNI of benchmarks/results/latency.md they took 0.72 to 1.03 of the library's time on
# convolutional nets of 3 to 6 million multiply-adds a layer (shufflenet 1.93), and 1.00 to 7.1 on
# those of 20 million and more, at 6 to 140 seconds of compiling. A batch of one is captured as two,
# so that its layers count twice. Nets of linear layers do not follow that: BERT-base took 0.97,
# swin_t 1.22.
_MOST = 15_000_000


def may_pay(program: Program, target: Target) -> bool:
    """Whether a quantized program may run faster with them than with the library's products."""
    if not _FEATURES & set(target.features):
        return False
    counts = multiply_adds(program)
    convolutions = [
        count
        for node, count in counts.items()
        if node.op == "call_module" and _is_convolution(program.leaf(node))
    ]
    if 2 * sum(convolutions) <= sum(counts.values()):
        return True
    return sum(convolutions) <= _MOST * len(convolutions)


def _is_convolution(layer: object) -> bool:
    return isinstance(layer, LeafModule) and layer.family == "convolution"
