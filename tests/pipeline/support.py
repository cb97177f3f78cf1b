"""Tiny passes, facts and runs for the tests of the pipeline."""

from dataclasses import dataclass

import torch
from torch import nn

from fxopt.analysis import Fact
from fxopt.cost import Target
from fxopt.passes import Context, Exact, Lossy, Pass, PassInfo
from fxopt.pipeline import PassManager, plan
from tests.building import aten, image, small_cnn

TARGET = Target("cpu", torch.device("cpu"), 1)


def relus(program):
    return [f"%{node.name}" for node in program.find(aten.relu.default)]


FACTS = {
    fact.name: fact
    for fact in (
        Fact("relus_are_modules", "no aten.relu is left", relus),
        Fact("never", "nothing is as it is", lambda program: ["everything"]),
        Fact("always", "all is well", lambda program: []),
    )
}


def declare(run, name=None, *, stage="simplify", fidelity=None, inapplicable=None, **declared):
    """A pass without settings that does what the function ``run`` does."""
    body = {
        "info": PassInfo(name or run.__name__, stage, fidelity or Exact(), **declared),
        "run": lambda self, program, context: run(program, context),
        "__module__": run.__module__,
    }
    if inapplicable is not None:
        body["inapplicable"] = lambda self, program, context: inapplicable(program)
    return dataclass(frozen=True)(type(run.__name__, (Pass,), body))()


@dataclass(frozen=True)
class ReluModules(Pass):
    """Replaces each aten.relu by a module: honest and exact."""

    info = PassInfo("relu_modules", "prepare", Exact(), provides=("relus_are_modules",))

    def run(self, program, context):
        with program.edit() as edit:
            for node in program.find(aten.relu.default):
                edit.replace(node, nn.ReLU(), *node.args)
        return edit.result()


@dataclass(frozen=True)
class SwapAdd(Pass):
    """Swaps the arguments of each addition: honest and exact, and it comes last."""

    info = PassInfo("swap_add", "lower", Exact())

    def run(self, program, context):
        with program.edit() as edit:
            for node in program.find(aten.add.Tensor):
                edit.set_arguments(node, *reversed(node.args))
        return edit.result("additions swapped")


@dataclass(frozen=True)
class Coarsen(Pass):
    """Rounds the weights of the head: honest and lossy."""

    step: float = 0.05
    info = PassInfo("coarsen", "numeric", Lossy())

    def run(self, program, context):
        with program.edit() as edit:
            for node in program.find(nn.Linear):
                old = program.leaf(node)
                new = nn.Linear(old.in_features, old.out_features)
                new.weight.data = (old.weight.data / self.step).round() * self.step
                new.bias.data = old.bias.data
                edit.replace(node, new, *node.args)
        return edit.result()


def context(**options):
    return Context(TARGET, **{"examples": [[image(2)], [image(3)]], **options})


EXAMPLES = context()


def run(passes, program=None, *, facts=FACTS, context=EXAMPLES, **options):
    program = program or small_cnn()
    holding = {name for name, fact in facts.items() if fact.holds(program)}
    return PassManager(plan(passes, facts, holding), facts, context, **options).run(program)


def weights(program):
    return {name: tensor.clone() for name, tensor in program.module.state_dict().items()}


def same_weights(program, saved):
    now = program.module.state_dict()
    return now.keys() == saved.keys() and all(torch.equal(now[n], saved[n]) for n in saved)


def outputs(program, batch=2):
    with torch.no_grad():
        return program.call(image(batch))
