"""The models that the benchmarks run on, with example inputs."""

from __future__ import annotations

import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...]


class LastHiddenState(nn.Module):
    """A transformers encoder reduced to one input and one output, which every rival can take."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids=ids).last_hidden_state


def build(name: str, batch: int) -> tuple[nn.Module, Inputs]:
    """A model in eval mode and a batch of inputs, the same in every run."""
    torch.manual_seed(0)
    if name == "bert_base":
        return _bert(batch)
    import torchvision

    model = torchvision.models.get_model(name, weights=None).eval()
    vary_batch_norms(model)
    fill_heads(model)
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


def _bert(batch: int) -> tuple[nn.Module, Inputs]:
    from transformers import BertConfig, BertModel

    encoder = BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False)
    return LastHiddenState(encoder).eval(), (torch.randint(0, 30000, (batch, 128)),)
