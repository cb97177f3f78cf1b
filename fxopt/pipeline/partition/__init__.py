"""Which parts of a program go to which backend: by support, and by what is faster where."""

from fxopt.pipeline.partition.support import Partition, partition

__all__ = ["Partition", "partition"]
