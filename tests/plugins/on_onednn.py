"""Programs on the backend ``onednn``, and what is left in the graph that it runs."""

import torch

from fxopt.cost import find_target
from fxopt_inductor import OneDNN
from fxopt_inductor.flat import flat_module
from fxopt_inductor.lowp import Form, rewrite
from tests.building import aten

CPU = find_target("cpu")


def compiled(program, *inputs):
    return OneDNN().lower(program, inputs, CPU).compile(inputs)


def count(executable, *targets):
    return sum(node.target in targets for node in executable.module.graph.nodes)


def conversions(executable):
    """How many quantizations and dequantizations are left."""
    casts = list(
        executable.module.graph.find_nodes(op="call_function", target=aten._to_copy.default)
    )
    to_codes = sum(node.kwargs["dtype"] is torch.uint8 for node in casts)
    return to_codes, len(casts) - to_codes


def check(program, *inputs, step=0.0, share=1.0):
    """Runs all forms; outputs may differ by ``step``, and by more than rounding in few places."""
    torch.manual_seed(1)
    executable = compiled(program, *inputs)
    with torch.no_grad():
        expected = program(*inputs)
        flat = flat_module(program, inputs)
        forms = [Form(compiled=True), Form(compiled=True, wide=False)]
        again = [rewrite(flat, form)(*inputs) for form in forms]
    for outputs in (executable(*inputs), *again):
        for output, wanted in zip(outputs, expected, strict=True):
            difference = (output - wanted).abs()
            rounding = 1e-5 * float(wanted.abs().max()) + 1e-6
            assert float(difference.max()) <= step * 1.001 + rounding
            assert float((difference <= rounding).float().mean()) >= share
    return executable
