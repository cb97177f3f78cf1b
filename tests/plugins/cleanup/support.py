"""Models, programs after the pass, and what holds of every one of them."""

import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.passes import Context
from fxopt.testing import make_case, run_pass, worst_error
from fxopt.testing.reference import randomize
from fxopt_cleanup import FACTS, Cleanup

F64 = torch.float64
CONTEXT = Context(find_target("cpu"))


class Calls(nn.Module):
    """A model from a function of it and its inputs; tensors become buffers."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *args):
        return self.function(self, *args)


def cleaned(model, *inputs, tolerance=0.0, **settings):
    """Runs the pass on a captured model and checks what always holds."""
    torch.manual_seed(0)
    inputs = inputs or (torch.randn(2, 4, 6, 6, dtype=F64),)
    case = make_case("case", randomize(model.double()).eval(), *inputs)
    assert case.program.signature.batch
    program, result = run_pass(Cleanup(**settings), case)
    check_result(program)
    assert worst_error(case, program) <= tolerance
    return program, result


def clean(program):
    """Runs the pass on a program built by hand."""
    program.module.eval()
    result = Cleanup().run(program, CONTEXT)
    check_result(program)
    return result


def check_result(program):
    program.verify()
    for fact in FACTS:
        assert list(fact.counterexamples(program)) == []


def operations(program):
    """What is called, in order."""
    names = []
    for node in program.nodes:
        if node.op == "call_module":
            names.append(type(program.leaf(node)).__name__)
        elif node.op == "call_function":
            names.append(str(getattr(node.target, "_opname", node.target.__name__)))
    return names
