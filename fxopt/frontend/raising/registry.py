"""What is raised: the one table from ATen overloads to the functions that raise them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from fxopt.frontend.keep import keep
from fxopt.frontend.raising.context import Context
from fxopt.frontend.raising.convolution import raise_convolution, raise_transposed
from fxopt.frontend.raising.linear import (
    raise_bilinear,
    raise_embedding,
    raise_embedding_bag,
    raise_linear,
    raise_prelu,
)
from fxopt.frontend.raising.normalization import (
    raise_batch_norm,
    raise_group_norm,
    raise_instance_norm,
    raise_layer_norm,
    raise_rms_norm,
)
from fxopt.frontend.raising.recurrent import raise_cell, raise_recurrent
from fxopt.frontend.raising.training import (
    raise_attention,
    raise_dropout,
    raise_kept,
    raise_softmax,
)
from fxopt.frontend.raising.views import RELAXED, relax_view

aten = torch.ops.aten
Raiser = Callable[[Context, Node], None]

RAISERS: dict[Any, Raiser] = {
    aten.conv1d.default: raise_convolution,
    aten.conv2d.default: raise_convolution,
    aten.conv3d.default: raise_convolution,
    aten.conv1d.padding: raise_convolution,
    aten.conv2d.padding: raise_convolution,
    aten.conv3d.padding: raise_convolution,
    aten.conv_transpose1d.default: raise_transposed,
    aten.conv_transpose2d.input: raise_transposed,
    aten.conv_transpose3d.input: raise_transposed,
    aten.linear.default: raise_linear,
    aten.bilinear.default: raise_bilinear,
    aten.embedding.default: raise_embedding,
    aten.embedding_bag.padding_idx: raise_embedding_bag,
    aten.prelu.default: raise_prelu,
    aten.batch_norm.default: raise_batch_norm,
    aten.instance_norm.default: raise_instance_norm,
    aten.group_norm.default: raise_group_norm,
    aten.layer_norm.default: raise_layer_norm,
    aten.rms_norm.default: raise_rms_norm,
    aten.lstm.input: raise_recurrent,
    aten.gru.input: raise_recurrent,
    aten.rnn_tanh.input: raise_recurrent,
    aten.rnn_relu.input: raise_recurrent,
    aten.lstm_cell.default: raise_cell,
    aten.gru_cell.default: raise_cell,
    aten.rnn_tanh_cell.default: raise_cell,
    aten.rnn_relu_cell.default: raise_cell,
    aten.dropout.default: raise_dropout,
    aten.feature_dropout.default: raise_dropout,
    aten.alpha_dropout.default: raise_dropout,
    aten.feature_alpha_dropout.default: raise_dropout,
    aten.scaled_dot_product_attention.default: raise_attention,
    aten.softmax.int: raise_softmax,
    keep._opoverload: raise_kept,
    **dict.fromkeys(RELAXED, relax_view),
}
