"""Weights in few bits with a scale for each group; what they multiply stays in float."""

from fxopt_quantize.weight_only.modules import WeightOnlyEmbedding, WeightOnlyLinear
from fxopt_quantize.weight_only.quantize_weights import QuantizeWeights
from fxopt_quantize.weight_only.recurrent import WeightOnlyRecurrent

__all__ = ["QuantizeWeights", "WeightOnlyEmbedding", "WeightOnlyLinear", "WeightOnlyRecurrent"]
