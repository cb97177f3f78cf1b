"""Models whose channels are coupled in many ways, by name."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from tests.plugins.prune.support import case_of, conv, random


class Forward(nn.Module):
    """Modules, and a function that calls them."""

    def __init__(self, call, **modules):
        super().__init__()
        self.call = call
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs):
        return self.call(self, *inputs)


IMAGE = (2, 3, 8, 8)


def net(*layers):
    return nn.Sequential(conv(3, 8), *layers, nn.Flatten(), nn.LazyLinear(5)), IMAGE


def residual():
    block = nn.Sequential(conv(8, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 8), nn.BatchNorm2d(8))
    return Forward(
        lambda m, x: m.head((m.stem(x) + m.block(m.stem(x))).mean((2, 3))),
        stem=conv(3, 8), block=block, head=nn.Linear(8, 4),
    ), IMAGE  # fmt: skip


def dense():
    def call(m, x):
        features = m.stem(x)
        features = torch.cat([features, m.first(features)], 1)
        features = torch.cat([features, m.second(features)], 1)
        return m.head(F.relu(m.norm(features)))

    return Forward(
        call, stem=conv(3, 8), first=conv(8, 4), second=conv(12, 4), norm=nn.BatchNorm2d(16),
        head=conv(16, 2),
    ), IMAGE  # fmt: skip


def shuffled():
    def call(m, x):
        first, second = m.stem(x).chunk(2, dim=1)
        x = torch.cat([first, m.branch(second)], dim=1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        first, second = x.chunk(2, dim=1)
        return m.head(torch.cat([first, m.other(second)], dim=1))

    branch = nn.Sequential(conv(8, 8, groups=8), conv(8, 8))
    return Forward(
        call, stem=conv(3, 16), branch=branch, other=conv(8, 8), head=conv(16, 3)
    ), IMAGE  # fmt: skip


def attention():
    def call(m, x):
        y, _ = m.attention(m.norm(x), m.norm(x), m.norm(x), need_weights=False)
        return m.head(x + y)

    return Forward(
        call, norm=nn.LayerNorm(24), attention=nn.MultiheadAttention(24, 4, batch_first=True),
        head=nn.Linear(24, 3),
    ), (2, 7, 24)  # fmt: skip


def cross_attention():
    """Keys and values are of another sequence, so that the projections are apart."""

    def call(m, x, memory):
        y, _ = m.attention(x, memory, memory, need_weights=False)
        return m.head(x + y)

    model = Forward(
        call, attention=nn.MultiheadAttention(24, 4, batch_first=True), head=nn.Linear(24, 3)
    )
    return model, ((2, 7, 24), (2, 5, 24))


def grouped_query(enable_gqa=False):
    """Keys that serve two queries each, repeated by the model or by the operator."""

    def call(m, x):
        n, t, _ = x.shape
        q = m.q(x).view(n, t, 6, 4).transpose(1, 2)
        k, v = (each(x).view(n, t, 3, 4).transpose(1, 2) for each in (m.k, m.v))
        if not enable_gqa:
            k, v = (each.repeat_interleave(2, dim=1) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=enable_gqa)
        return m.out(y.transpose(1, 2).reshape(n, t, 24))

    layers = {"q": nn.Linear(10, 24), "k": nn.Linear(10, 12), "v": nn.Linear(10, 12)}
    return Forward(call, **layers, out=nn.Linear(24, 10)), (2, 5, 10)


def expanded_query():
    """Keys that are expanded and reshaped, as large language models do."""

    def call(m, x):
        n, t, _ = x.shape
        q = m.q(x).view(n, t, 4, 4).transpose(1, 2)
        k, v = m.kv(x).view(n, t, 2, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = (e[:, :, None].expand(n, 2, 2, t, 4).reshape(n, 4, t, 4) for e in (k, v))
        weights = (q @ k.transpose(-1, -2) / 2 + m.bias).softmax(-1)
        return m.out((weights @ v).transpose(1, 2).reshape(n, t, -1))

    model = Forward(call, q=nn.Linear(10, 16), kv=nn.Linear(10, 16), out=nn.Linear(16, 10))
    model.bias = nn.Parameter(torch.randn(1, 4, 5, 5))
    return model, (2, 5, 10)


def patches():
    """Position embeddings, a class token, layer scale and a mean over tokens."""

    def call(m, x):
        x = m.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.token.expand(len(x), -1, -1), x], dim=1) + m.positions
        x = x + m.scale * m.mlp(x)
        return m.head(torch.cat([x[:, 0], x.mean(1)], dim=-1))

    model = Forward(
        call, patch=nn.Conv2d(3, 12, 4, 4), head=nn.Linear(24, 3),
        mlp=nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12)),
    )  # fmt: skip
    model.token = nn.Parameter(torch.randn(1, 1, 12))
    model.positions = nn.Parameter(torch.randn(1, 5, 12))
    model.scale = nn.Parameter(torch.randn(12))
    return model, IMAGE


def windows():
    def call(m, x):
        x = m.stem(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        x = m.mix(x).view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5)
        x = F.pad(x.reshape(n, h, w, c), (0, 0, 0, 2, 0, 2)).roll((1, 1), (1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 1::2]], -1)
        return m.head(x)

    return Forward(call, stem=conv(3, 8), mix=nn.Linear(8, 8), head=nn.Linear(16, 3)), IMAGE


def gated():
    """Squeeze and excite, and channels cut by hand."""

    def call(m, x):
        x = m.stem(x)
        x = x * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
        a, b, c = torch.split(x, [4, 6, 2], dim=1)
        return m.head(torch.cat([a, torch.tanh(b) * x[:, 6:], c.repeat(1, 2, 1, 1)], 1))

    return Forward(
        call, stem=conv(3, 12), down=nn.Conv2d(12, 4, 1), up=nn.Conv2d(4, 12, 1),
        head=nn.Conv2d(14, 3, 1),
    ), IMAGE  # fmt: skip


def recurrent():
    def call(m, ids):
        x, _ = m.lstm(m.embedding(ids))
        x, _ = m.gru(x)
        return m.head(x)

    model = Forward(
        call, embedding=nn.Embedding(20, 8), head=nn.Linear(6, 3),
        lstm=nn.LSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True),
        gru=nn.GRU(10, 6, batch_first=True),
    )  # fmt: skip
    return model, torch.randint(0, 20, (2, 7))


def einsum():
    def call(m, x):
        return m.head(torch.einsum("nti,nsi->nts", m.first(x), m.second(x)))

    layers = {"first": nn.Linear(6, 8), "second": nn.Linear(6, 8)}
    return Forward(call, **layers, head=nn.Linear(5, 3)), (2, 5, 6)


def shared():
    def call(m, x):
        x = m.stem(x)
        return m.head(m.twice(torch.relu(m.twice(x))))

    return Forward(call, stem=conv(3, 8), twice=conv(8, 8), head=conv(8, 3)), IMAGE


def upsampled():
    def call(m, x):
        x = F.interpolate(m.stem(x), scale_factor=2, mode="bilinear")
        return m.head(F.pixel_shuffle(m.wide(F.max_pool2d(x, 2)), 2))

    return Forward(call, stem=conv(3, 8), wide=conv(8, 24), head=conv(6, 3)), IMAGE


MODELS = {
    "plain": lambda: net(nn.ReLU(), conv(8, 6), nn.Tanh()),
    "batch norm": lambda: net(nn.BatchNorm2d(8), nn.Hardswish(), conv(8, 6)),
    "norm without weights": lambda: net(nn.BatchNorm2d(8, affine=False), conv(8, 6)),
    "instance norm": lambda: net(nn.InstanceNorm2d(8, affine=True), conv(8, 6)),
    "prelu": lambda: net(nn.PReLU(8), conv(8, 6), nn.PReLU()),
    "depthwise": lambda: net(conv(8, 8, groups=8), nn.ReLU6(), conv(8, 6)),
    "multiplier": lambda: net(conv(8, 16, groups=8), conv(16, 6)),
    "groups": lambda: net(conv(8, 12, groups=2), conv(12, 6)),
    "many groups": lambda: net(conv(8, 16, groups=4), conv(16, 6)),
    "transposed": lambda: net(nn.ConvTranspose2d(8, 6, 2, 2), conv(6, 4)),
    "transposed, groups": lambda: net(nn.ConvTranspose2d(8, 12, 2, groups=2), conv(12, 4)),
    "transposed, depthwise": lambda: net(
        nn.ConvTranspose2d(8, 8, 2, groups=8, bias=False), conv(8, 4)
    ),
    "dropout": lambda: net(nn.Dropout2d(0.5), conv(8, 6), nn.Identity()),
    "pooling": lambda: net(nn.MaxPool2d(2), conv(8, 6), nn.AdaptiveAvgPool2d(2)),
    "residual": residual,
    "dense": dense,
    "shuffled": shuffled,
    "attention": attention,
    "cross attention": cross_attention,
    "grouped query": grouped_query,
    "grouped query, by the operator": lambda: grouped_query(enable_gqa=True),
    "expanded query": expanded_query,
    "patches": patches,
    "windows": windows,
    "gated": gated,
    "recurrent": recurrent,
    "einsum": einsum,
    "shared": shared,
    "upsampled": upsampled,
}


@functools.cache  # programs are captured once; whoever changes one works on a clone
def case_named(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    if isinstance(inputs, tuple):
        shapes = inputs if isinstance(inputs[0], tuple) else (inputs,)
        inputs = [random(*shape) for shape in shapes]
    else:
        inputs = [inputs]
    with torch.no_grad():
        model.double()(*inputs)  # what is lazy learns its size
    return case_of(model, *inputs)
