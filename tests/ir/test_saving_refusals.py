"""Programs as files: what cannot be saved is refused by name, and a file can do nothing else."""

import json
import math
import operator
import re
import sys
from collections import OrderedDict, defaultdict

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxopt.errors import FxoptError, SavingError
from fxopt.ir import LeafModule, Program, Signature
from fxopt.ir.saving import load_program, save_program
from fxopt.ir.saving.container import VERSION, read_container, write_container
from fxopt.ir.saving.specs import dump_spec, load_spec
from fxopt.ir.saving.targets import find_function, function_name
from fxopt.ir.saving.values import UnsavableError
from tests.building import Builder, aten, small_cnn


class Plus(nn.Module):
    def forward(self, x):
        return x + 1


class Open(LeafModule):
    def __init__(self, thing=None):
        super().__init__()
        self.thing = thing

    def forward(self, x):
        return x + 1


def hooked():
    leaf = nn.ReLU()
    leaf.register_forward_hook(lambda *_: None)
    return leaf


def local():
    class Local(Open):
        pass

    return Local()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Plus, r"the leaf body\.act, a .*Plus, which is neither of torch\.nn nor a LeafModule"),
        (lambda: Open(object()), r"the leaf body\.act, a .*Open, whose attribute thing holds"),
        (hooked, r"the leaf body\.act, a .*ReLU, which has hooks"),
        (local, r"whose class cannot be imported"),
        (lambda: Open(torch.ones(2, device="meta")), r"the tensor body\.act\.thing"),
        (lambda: Open(nn.utils.rnn.pack_sequence([torch.ones(2)])), r"PackedSequence"),
    ],
)
def test_other_leaves_are_refused_by_name(make, reason, path):
    b = Builder(body__act=make())
    node = b.graph.call_module("body.act", (b.input("x", 2, 4),))
    node.meta["val"] = node.args[0].meta["val"]
    program = b.program(node)
    with pytest.raises(SavingError, match=reason):
        save_program(program, path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "kwargs", "reason"),
    [
        (print, {}, "%print_1: the function <built-in function print>"),
        (eval, {}, "%eval_1: the function <built-in function eval>"),
        (aten.add.Scalar, {"other": b"1"}, "%add_scalar: a builtins.bytes"),
    ],
)
def test_other_functions_and_arguments_are_refused_by_node(target, kwargs, reason, path):
    b = Builder()
    x = b.input("x", 2, 4)
    node = b.graph.call_function(target, (x,), kwargs)
    node.meta.update(val=x.meta["val"], source="model.py:7")
    with pytest.raises(SavingError) as info:
        save_program(b.program(node), path)
    assert reason in info.value.what
    assert info.value.where == "model.py:7"


@pytest.mark.parametrize(
    "function",
    [aten.add.Tensor, torch.ops.aten.__and__.Tensor, operator.getitem, max, math.ceil,
     torch.sym_max, torch._sym_sqrt],
)  # fmt: skip
def test_functions_are_found_by_their_name(function):
    assert find_function(function_name(function)) is function


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "os.system", "operator.attrgetter", "torch.load", "torch.ops.aten.relu",
     "torch.ops.aten.relu_.default", "torch.ops.aten.no_such.default", "torch.ops.nothing.a.b",
     "torch.ops.load_library.__func__.__globals__", "torch.ops.aten.relu.__class__",
     "xtorch.ops.aten.relu.default", ""],
)  # fmt: skip
def test_no_other_function_is_found(name):
    with pytest.raises(ValueError):
        find_function(name)


@pytest.mark.parametrize("function", [eval, print, operator.attrgetter, aten.relu, [], "x"])
def test_other_functions_have_no_name(function):
    assert function_name(function) is None


# -- signatures ------------------------------------------------------------------------------


def test_nestings_survive():
    for tree in ((1, [2, {"b": 3, "a": None}]), OrderedDict(x=1), defaultdict(list, a=[1])):
        spec = pytree.tree_structure(tree)
        assert load_spec(dump_spec(spec), ()) == spec


def test_nestings_of_unknown_classes_are_refused(path):
    class Output(tuple):
        pass

    pytree.register_pytree_node(Output, lambda o: (list(o), None), lambda v, _: Output(v))
    spec = pytree.tree_structure(Output([1]))
    inputs = pytree.tree_structure(((1,), {}))
    program = Program(small_cnn().module, Signature(inputs, spec, True))
    with pytest.raises(SavingError, match=r"the nesting .*Output") as caught:
        save_program(program, path)
    assert "tuples, lists and dicts" in (caught.value.hint or "")


def test_keys_that_json_would_change_are_refused():
    with pytest.raises(UnsavableError):
        dump_spec(pytree.tree_structure({(1, 2): 0}))


def test_a_nesting_imports_nothing():
    text = dump_spec(pytree.tree_structure(defaultdict(list, a=1)))
    for module, name in (("os", "getcwd"), ("builtins", "breakpoint"), ("this", "s")):
        bad = text.replace("builtins", module).replace('"list"', f'"{name}"')
        assert bad != text
        with pytest.raises(ValueError, match="defaultdict"):
            load_spec(bad, ())
    plain = dump_spec(pytree.tree_structure({"key": 1}))
    enum = json.dumps(json.dumps([{"__enum__": True, "fqn": "this:s", "name": "x"}]))
    bad = plain.replace(json.dumps(json.dumps(["key"])), enum)
    assert bad != plain
    with pytest.raises(ValueError, match="this may not be imported"):
        load_spec(bad, ())
    assert "this" not in sys.modules


# -- files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "program"
    save_program(small_cnn(), path)
    return path


def test_damage_anywhere_is_noticed(saved, path):
    data = saved.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(0, len(data), (40,), generator=generator).tolist():
        for bit in (1, 64):
            damaged = bytearray(data)
            damaged[position] ^= bit
            path.write_bytes(damaged)
            with pytest.raises(SavingError, match=re.escape(str(path))):
                load_program(path)


@pytest.mark.parametrize("length", [0, 1, 8, 100, -5000, -1])
def test_truncated_files_are_refused(saved, path, length):
    path.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(SavingError, match="damaged"):
        load_program(path)


def test_other_files_are_refused(saved, path, tmp_path):
    for data in (b"hello" * 100, b"\x80\x02pickle", b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(SavingError, match="no safetensors file"):
            load_program(path)
    safetensors.torch.save_file({"x": torch.ones(2)}, path)
    with pytest.raises(SavingError, match="no program that fxopt has saved"):
        load_program(path)
    document, tensors = read_container(saved, "program")
    write_container(path, "examples", document, tensors)
    with pytest.raises(SavingError, match="no program that fxopt has saved"):
        load_program(path)
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SavingError, match="cannot be read"):
            load_program(missing)
    with pytest.raises(SavingError, match="cannot be written"):
        save_program(small_cnn(), tmp_path / "no folder" / "program")


def test_newer_versions_are_refused(saved, path, monkeypatch):
    document, tensors = read_container(saved, "program")
    with monkeypatch.context() as patch:
        patch.setattr("fxopt.ir.saving.container.VERSION", VERSION + 1)
        write_container(path, "program", document, tensors)
    with pytest.raises(SavingError, match=f"version {VERSION + 1}.*reads up to {VERSION}") as info:
        load_program(path)
    assert info.value.hint == "update fxopt"


def test_a_file_is_replaced_whole_or_not_at_all(path, monkeypatch):
    b = Builder()
    other = b.program(b.call(aten.relu.default, b.input("x", 2, 3)))
    save_program(small_cnn(), path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", _fail)
        with pytest.raises(SavingError, match="disk full"):
            save_program(other, path)
    assert path.read_bytes() == before
    save_program(other, path)
    assert path.read_bytes() != before
    assert list(path.parent.iterdir()) == [path]


def _fail(tensors, path, metadata):
    path.write_bytes(b"half")
    raise OSError("disk full")


def node(which, /, **changes):
    def change(document):
        (entry,) = [entry for entry in document["nodes"] if entry["name"] == which]
        entry.update(changes)

    return change


def leaf(**changes):
    def change(document):
        entry = next(e for e in document["modules"] if "attributes" in e)
        for key, value in changes.items():
            entry[key] = {**entry[key], **value} if isinstance(value, dict) else value

    return change


def update(**changes):
    return lambda document: document.update(changes)


HOSTILE = {
    "function": (node("relu_default", target="builtins.eval"), "cannot call 'builtins.eval'"),
    "operator": (
        node("relu_default", target="torch.ops.aten.relu_.default"), "writes to its arguments",
    ),
    "method": (node("relu_default", op="call_method"), "a node cannot be a call_method"),
    "name": (node("relu_default", name="relu; import os"), "no name of a node"),
    "keyword": (node("relu_default", kwargs={"a=1) #": 1}), "no name of a node or an argument"),
    "input": (node("x", target="x=print(1)"), "no name of a node"),
    "module": (node("stem", target='stem") or print("'), "does not accept its arguments"),
    "reference": (node("relu_default", args=[{"node": "later"}]), "it lacks 'later'"),
    "arity": (node("relu_default", args=[1, 2, 3]), "does not accept its arguments"),
    "tag": (node("relu_default", args=[{"code": "print()"}]), "unknown kind 'code'"),
    "dtype": (node("relu_default", args=[{"dtype": "load"}]), "torch has no dtype 'load'"),
    "size": (
        node("x", input={"tensor": {"dtype": "float32", "device": "cpu", "strides": [1],
                                    "sizes": ["__import__('os').getpid()"]}}),
        "no expression of sizes|sizes are not computed with",
    ),
    "power": (
        node("x", input={"tensor": {"dtype": "float32", "device": "cpu", "strides": [1],
                                    "sizes": ["9**9**9**9"]}}),
        "no power of a size",
    ),
    "class": (leaf(**{"class": "subprocess:Popen"}), "subprocess may not be imported"),
    "main": (leaf(**{"class": "fxopt.__main__:app"}), "__main__ may not be imported"),
    "no class": (leaf(**{"class": "fxopt.errors:FxoptError"}), "no class of torch.nn"),
    "nn": (leaf(**{"class": "torch.nn.modules.module:register_module_forward_hook"}), "no class"),
    "missing class": (leaf(**{"class": "torch.nn.modules.nothing:X"}), "cannot be imported"),
    "hooks": (leaf(attributes={"_forward_hooks": {"dict": []}}), "not for files to set"),
    "quotes": (leaf(children={'a"b': None}), "no name of a module"),
    "cycle": (leaf(children={"again": 0}), "cannot be loaded"),
    "tensor": (leaf(parameters={"weight": 99}), "index out of range"),
    "missing": (lambda document: document.pop("signature"), "it lacks 'signature'"),
    "title": (update(title="X(): pass"), "no name of a class"),
    "list": (update(nodes=None), "cannot be loaded"),
    "signature": (
        lambda document: document["signature"].update(
            outputs=dump_spec(pytree.tree_structure((1, 2)))
        ),
        "outputs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, saved, path):
    change, reason = HOSTILE[name]
    document, tensors = read_container(saved, "program")
    change(document)
    write_container(path, "program", document, tensors)
    with pytest.raises(SavingError, match=reason) as info:
        load_program(path)
    assert isinstance(info.value, FxoptError)


def test_what_may_not_be_imported_is_not(saved, path, tmp_path, monkeypatch):
    (tmp_path / "with_effects.py").write_text("print('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    document, tensors = read_container(saved, "program")
    leaf(**{"class": "with_effects:Leaf"})(document)
    write_container(path, "program", document, tensors)
    with pytest.raises(SavingError, match="may not be imported"):
        load_program(path)
    assert "with_effects" not in sys.modules
