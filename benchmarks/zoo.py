"""The models that the benchmarks run on, with example inputs."""

from __future__ import annotations

import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...]

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "bert_base",
    "lstm_tagger",
)
"""What the latency study runs on; any other name of torchvision's works too."""


class LastHiddenState(nn.Module):
    """A transformers encoder reduced to one input and one output, which every rival can take."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids=ids).last_hidden_state


class LSTMTagger(nn.Module):
    """One of 50 tags for each token: an embedding, a bidirectional LSTM and a linear layer."""

    def __init__(self, words: int = 10000, width: int = 256, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(2 * width, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.tags(self.lstm(self.embedding(ids))[0])


def build(name: str, batch: int) -> tuple[nn.Module, Inputs]:
    """A model in eval mode and a batch of inputs, the same in every run."""
    torch.manual_seed(0)
    if name == "bert_base":
        return _bert(batch)
    if name == "lstm_tagger":
        return LSTMTagger().eval(), (torch.randint(0, 10000, (batch, 64)),)
    import torchvision

    model = torchvision.models.get_model(name, weights=None).eval()
    vary_batch_norms(model)
    fill_heads(model)
    open_branches(model)
    return model, (torch.randn(batch, 3, 224, 224),)


def vary_batch_norms(model: nn.Module) -> None:
    """Random statistics: those of a fresh net are the identity, which no trained net has."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            size = module.num_features
            module.running_mean.copy_(torch.randn(size, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)


def fill_heads(model: nn.Module) -> None:
    """Random weights where a fresh net has zeros: with those its output tells nothing."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.data.normal_(std=0.02, generator=generator)


def open_branches(model: nn.Module) -> None:
    """Layer scales as large as in a trained net: a fresh ConvNeXt's 1e-6 hide all its blocks."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        scale = getattr(module, "layer_scale", None)
        if isinstance(scale, nn.Parameter):
            scale.data.uniform_(0.1, 0.5, generator=generator)


def _bert(batch: int) -> tuple[nn.Module, Inputs]:
    from transformers import BertConfig, BertModel

    encoder = BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False)
    return LastHiddenState(encoder).eval(), (torch.randint(0, 30000, (batch, 128)),)
