"""Cases, and units removed at random compared with zeros in their place."""

import numpy as np
import torch
from torch import nn

from fxopt.testing import make_case, run_pass
from fxopt.testing.reference import randomize
from fxopt_prune import Prune
from fxopt_prune.channels import find_groups
from fxopt_prune.shrink import remove, zeroed

F64 = torch.float64


def case_of(model, *inputs):
    torch.manual_seed(0)
    return make_case("case", randomize(model.double()).eval(), *inputs)


def random(*shape):
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=F64)


def drawn(structure, share, seed=0, inexact=False):
    """Units of each group at random; at least one of each stays."""
    numbers, units = np.random.default_rng(seed), []
    for group in structure.groups:
        if len(group) > 1 and (group.exact or inexact):
            count = min(len(group) - 1, max(1, round(len(group) * share)))
            units += numbers.choice(group.units, count, replace=False).tolist()
    return units


def removed(case, share=0.4, seed=0, inexact=False):
    """The program without some units, the one with zeros instead, and what was found in it."""
    program = case.program.clone()
    structure = find_groups(program)
    units = drawn(structure, share, seed, inexact)
    twin = zeroed(program, structure, units)
    edit = program.edit()
    with edit:
        remove(program, edit, structure, units, "some units")
    program.verify()
    return program, twin, structure


def check(case, share=0.4, seed=0):
    """What is left computes what zeros compute, at both batch sizes; what was found."""
    program, twin, structure = removed(case, share, seed)
    for actual, expected in zip(case.outputs(program), case.outputs(twin), strict=True):
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    return structure


def check_model(model, *inputs, share=0.4):
    return check(case_of(model, *inputs), share)


def groups_of(structure):
    """Sizes of groups by name."""
    return {group.name: len(group) for group in structure.groups}


def conv(inputs, outputs, **settings):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **settings)


class Task(nn.Module):
    """A layer takes a vector: one for all examples."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.task = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return self.head(self.stem(x) * self.second(torch.relu(self.first(self.task))))


def chain(*channels, last=3):
    layers = []
    for inputs, outputs in zip((3, *channels), channels, strict=False):
        layers += [conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], last)
    )


def image_case(*channels):
    return case_of(chain(*channels), random(4, 3, 8, 8))


def widths(program):
    return [program.leaf(node).out_channels for node in program.find(nn.Conv2d)]


def pruned(case, **settings):
    return run_pass(Prune(**settings), case)
