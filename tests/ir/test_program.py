"""Text, fingerprint, clone, search and signature of programs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxopt.errors import InputError
from fxopt.ir import Program, Signature, is_random
from tests.building import Builder, aten, image, small_cnn

GOLDEN = """\
%x = input -> f32[N, 3, 8, 8]
%stem = stem: Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))(%x) -> f32[N, 8, 8, 8]
%relu_default = aten.relu.default(%stem) -> f32[N, 8, 8, 8]
%body_conv = body.conv: Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))\
(%relu_default) -> f32[N, 8, 8, 8]
%add_tensor = aten.add.Tensor(%body_conv, %relu_default) -> f32[N, 8, 8, 8]
%mean_dim = aten.mean.dim(%add_tensor, [2, 3]) -> f32[N, 8]
%head = head: Linear(in_features=8, out_features=20, bias=True)(%mean_dim) -> f32[N, 20]
return [%head]
"""


def test_text():
    # How torch names the symbol of the batch is its own affair.
    assert re.sub(r"\bs\d+\b", "N", small_cnn().text()) == GOLDEN


def test_text_of_the_rarer_things():
    b = Builder()
    x = b.input("x", 2, 4)
    scale = b.attribute("scale", torch.ones(4, dtype=torch.float16))
    size = b.call(aten.sym_size.int, x, 0)
    parts = b.call(aten.split.Tensor, b.call(aten.mul.Tensor, x, scale), 2, 1)
    full = b.call(aten.full.default, [size, 1], 0.5, dtype=torch.float64)
    text = re.sub(r"\bs\d+\b", "N", b.program(full, parts).text())
    assert "%scale = attribute scale -> f16[4]" in text
    assert "%sym_size_int = aten.sym_size.int(%x, 0) -> N" in text
    assert "aten.split.Tensor(%mul_tensor, 2, 1) -> (f32[N, 2], f32[N, 2])" in text
    assert "aten.full.default([%sym_size_int, 1], 0.5, dtype=torch.float64) -> f64[N, 1]" in text


# -- fingerprint -----------------------------------------------------------------------------


def test_fingerprint_is_the_same_in_another_process():
    root = Path(__file__).parents[2]
    code = "from tests.building import small_cnn; print(small_cnn().fingerprint())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == small_cnn().fingerprint()


def flip_a_bit(program):
    weight = program.module.get_submodule("stem").weight
    weight.detach().view(torch.int32)[0, 0, 0, 0] ^= 1


def change_a_layer(program):
    program.module.get_submodule("body.conv").padding = (0, 0)


def change_an_operator(program):
    next(program.find(aten.relu.default)).target = aten.sigmoid.default


def change_an_argument(program):
    mean = next(program.find(aten.mean.dim))
    mean.args = (mean.args[0], [3, 2])


def change_a_dtype(program):
    program.module.get_submodule("head").double()


@pytest.mark.parametrize(
    "change", [flip_a_bit, change_a_layer, change_an_operator, change_an_argument, change_a_dtype]
)
def test_fingerprint_sees(change):
    program = small_cnn()
    change(program)
    assert program.fingerprint() != small_cnn().fingerprint()


def test_fingerprint_sees_buffers_that_are_not_persistent():
    prints = set()
    for value in (1.0, 2.0):
        b = Builder()
        x = b.input("x", 2, 4)
        b.module.register_buffer("scale", torch.full((4,), value), persistent=False)
        program = b.program(b.call(aten.mul.Tensor, x, b.attribute("scale")))
        prints.add(program.fingerprint())
    assert len(prints) == 2


# -- clone -----------------------------------------------------------------------------------


def test_a_clone_is_equal_and_independent():
    program, x = small_cnn(), image()
    before, expected = program.fingerprint(), program.call(x)
    twin = program.clone()
    twin.verify()
    assert twin.fingerprint() == before
    with torch.no_grad():
        twin.module.get_submodule("stem").weight.zero_()
    with twin.edit() as edit:
        edit.redirect(next(twin.find(aten.add.Tensor)), next(twin.find(aten.relu.default)))
    assert program.fingerprint() == before
    assert torch.equal(program.call(x), expected)
    program.verify()


def test_a_clone_keeps_ties_values_and_provenance():
    shared = nn.Linear(4, 4)
    b = Builder(one=shared, two=shared)
    program = b.program(b.call("two", b.call("one", b.input("x", 2, 4))))
    program.rewrite_limit = 3
    twin = program.clone()
    modules = dict(twin.module.named_modules(remove_duplicate=False))
    assert modules["one"] is modules["two"]
    assert modules["one"] is not shared
    assert twin.rewrite_limit == 3
    for mine, its in zip(program.nodes, twin.nodes, strict=True):
        assert mine is not its
        assert mine.meta.get("source") == its.meta.get("source")
        if mine.op != "output":
            assert str(mine.meta["val"].shape) == str(its.meta["val"].shape)


def test_a_clone_keeps_the_mode():
    program = small_cnn()
    program.module.train()
    assert program.clone().module.training


# -- search and signature --------------------------------------------------------------------


def test_find():
    program = small_cnn()
    assert [n.name for n in program.find(nn.Conv2d)] == ["stem", "body_conv"]
    assert [n.name for n in program.find(nn.modules.conv._ConvNd)] == ["stem", "body_conv"]
    assert [n.name for n in program.find(aten.relu.default, nn.Linear)] == ["relu_default", "head"]
    assert list(program.find(aten.sigmoid.default, nn.BatchNorm2d)) == []


def test_weight_bytes_count_a_shared_module_once():
    shared = nn.Linear(4, 4, bias=False)
    b = Builder(one=shared, two=shared)
    program = b.program(b.call("two", b.call("one", b.input("x", 2, 4))))
    assert program.weight_bytes() == 4 * 4 * 4


def keyword_program():
    b = Builder()
    x, y = b.input("x", 2, 4), b.input("y", 2, 4)
    program = b.program(b.call(aten.sub.Tensor, x, y))
    in_spec = pytree.tree_structure(((), {"x": 0, "y": 0}))
    return Program(program.module, Signature(in_spec, program.signature.out_spec, batch=True))


def test_keyword_inputs_come_in_any_order():
    program = keyword_program()
    x, y = torch.ones(3, 4), torch.zeros(3, 4)
    assert torch.equal(program.call(x=x, y=y), x - y)
    assert torch.equal(program.call(y=y, x=x), x - y)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1, 2), {}), ((), {"x": 1}), ((), {"x": 1, "z": 2}), ((), {"x": 1, "y": (2, 3)})],
)
def test_another_structure_is_an_input_error(args, kwargs):
    with pytest.raises(InputError, match="another structure"):
        keyword_program().call(*args, **kwargs)


@pytest.mark.parametrize(
    ("target", "arguments", "random"),
    [
        (aten.scaled_dot_product_attention.default, (), False),
        (aten.scaled_dot_product_attention.default, (None, 0.1), True),
        (aten.dropout.default, (0.5, True), True),
        (aten.dropout.default, (0.5, False), False),
        (aten.dropout.default, (0.0, True), False),
        (aten.bernoulli.default, (), True),
        (aten.relu.default, (), False),
    ],
)
def test_what_drops_nothing_is_not_random(target, arguments, random):
    graph = torch.fx.Graph()
    tensors = 3 if "attention" in str(target) else 1
    inputs = [graph.placeholder(f"x{index}") for index in range(tensors)]
    node = graph.call_function(target, (*inputs, *arguments))
    assert is_random(node) is random


def test_a_twin_shares_its_weights_and_nothing_else():
    program = small_cnn()
    twin = program.twin()
    weights, others = ({**p.module.state_dict(keep_vars=True)} for p in (program, twin))
    assert weights.keys() == others.keys()
    assert all(others[name] is weight for name, weight in weights.items())
    before = program.text()
    change_an_operator(twin)
    assert twin.text() != program.text() == before
