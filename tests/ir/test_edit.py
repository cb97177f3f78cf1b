"""The editor: what each change leaves behind."""

import re

import pytest
import torch
from torch import nn

from fxopt.errors import ProgramError
from tests.building import Builder, aten, image, small_cnn


def node_named(program, name):
    return next(node for node in program.nodes if node.name == name)


def sizes(node):
    return [str(size) for size in node.meta["val"].shape]


# -- replace ---------------------------------------------------------------------------------


def test_replace_by_a_function():
    program, x = small_cnn(), image()
    with program.edit() as edit:
        relu = node_named(program, "relu_default")
        new = edit.replace(relu, aten.sigmoid.default, relu.args[0])
    program.verify()
    stem, conv, head = (program.module.get_submodule(n) for n in ("stem", "body.conv", "head"))
    hidden = stem(x).sigmoid()
    torch.testing.assert_close(program.call(x), head((conv(hidden) + hidden).mean((2, 3))))
    assert new.meta["source"] == relu.meta["source"]
    assert new.meta["from"] == ("relu_default",)
    assert sizes(new) == sizes(relu)
    assert relu.name not in [node.name for node in program.nodes]


def test_replaced_module_gives_up_its_name():
    program = small_cnn()
    twin = nn.Conv2d(3, 8, 3, padding=1)
    with program.edit() as edit:
        stem = node_named(program, "stem")
        edit.replace(stem, twin, stem.args[0])
    program.verify()
    assert program.module.get_submodule("stem") is twin
    assert set(program.module._modules) == {"stem", "body", "head"}


def test_module_for_a_function_is_named_after_the_node():
    program = small_cnn()
    with program.edit() as edit:
        relu = node_named(program, "relu_default")
        new = edit.replace(relu, nn.ReLU6(), relu.args[0])
    program.verify()
    assert new.target == "relu_default"
    assert isinstance(program.leaf(new), nn.ReLU6)


def test_new_module_takes_the_mode_of_the_program():
    program = small_cnn()
    with program.edit() as edit:
        relu = node_named(program, "relu_default")
        edit.replace(relu, nn.Dropout().train(), relu.args[0])
    assert not program.module.get_submodule("relu_default").training


def test_a_shared_module_stays_for_its_other_caller():
    shared = nn.Linear(4, 4)
    b = Builder(fc=shared)
    first = b.call("fc", b.input("x", 2, 4))
    program = b.program(b.call("fc", first))
    other = nn.Linear(4, 4)
    with program.edit() as edit:
        new = edit.replace(first, other, first.args[0])
    program.verify()
    assert new.target == "fc_1"
    assert program.module.get_submodule("fc") is shared
    assert program.module.get_submodule("fc_1") is other


def test_when_both_callers_are_replaced_the_last_one_gets_the_name():
    b = Builder(fc=nn.Linear(4, 4))
    first = b.call("fc", b.input("x", 2, 4))
    second = b.call("fc", first)
    program = b.program(second)
    with program.edit() as edit:
        for node in (first, second):
            edit.replace(node, nn.Linear(4, 4), node.args[0])
    program.verify()
    assert {name for name, _ in program.module.named_children()} == {"fc", "fc_1"}


def test_one_new_module_for_both_callers_is_shared():
    b = Builder(fc=nn.Linear(4, 4))
    first = b.call("fc", b.input("x", 2, 4))
    second = b.call("fc", first)
    program, other = b.program(second), nn.Linear(4, 4)
    with program.edit() as edit:
        for node in (first, second):
            edit.replace(node, other, node.args[0])
    program.verify()
    callers = [node for node in program.nodes if node.op == "call_module"]
    assert len({node.target for node in callers}) == 1
    assert all(program.leaf(node) is other for node in callers)


def tied_embedding():
    """An embedding whose weight is read again, as a decoder does."""
    embedding = nn.Embedding(10, 4)
    b = Builder(embed=embedding)
    hidden = b.call("embed", b.input("ids", 2, 3, dtype=torch.int64))
    weight = b.attribute("embed.weight")
    return b.program(b.call(aten.linear.default, hidden, weight)), embedding


def test_a_module_whose_weight_is_read_elsewhere_keeps_its_name():
    program, embedding = tied_embedding()
    ids = torch.randint(0, 10, (2, 3))
    expected = (embedding(ids) * 0 + 1) @ embedding.weight.T
    ones = nn.Embedding(10, 4)
    nn.init.ones_(ones.weight)
    with program.edit() as edit:
        embed = node_named(program, "embed")
        edit.replace(embed, ones, embed.args[0])
    program.verify()
    torch.testing.assert_close(program.call(ids), expected)
    assert program.tensor(node_named(program, "embed_weight")) is embedding.weight


def test_a_layer_of_which_only_the_weight_is_left_can_be_printed():
    b = Builder(fc=nn.Linear(4, 4))
    x = b.input("x", 2, 4)
    hidden = b.call("fc", x)
    program = b.program(b.call(aten.linear.default, hidden, b.attribute("fc.weight")))
    with program.edit() as edit:
        edit.redirect(hidden, x)
    program.verify()
    assert set(program.module.state_dict()) == {"fc.weight"}
    assert "Linear" in repr(program.module)


def test_arguments_that_do_not_fit_leave_nothing_behind():
    program, x = small_cnn(), image()
    before, expected = program.fingerprint(), program.call(x)
    with program.edit() as edit:
        stem = node_named(program, "stem")
        with pytest.raises(ProgramError, match="does not accept its arguments") as caught:
            edit.replace(stem, nn.Conv2d(5, 8, 3, padding=1), stem.args[0])
        with pytest.raises(ProgramError):
            edit.call(nn.Linear(7, 7), stem, before=program.output)
    assert "model.py" in str(caught.value)
    program.verify()
    assert program.fingerprint() == before
    assert torch.equal(program.call(x), expected)


# -- redirect --------------------------------------------------------------------------------


def test_redirect_drops_what_is_no_longer_needed():
    program = small_cnn()
    with program.edit() as edit:
        edit.redirect(node_named(program, "add_tensor"), node_named(program, "relu_default"))
    program.verify()
    assert [node.name for node in program.nodes] == [
        "x", "stem", "relu_default", "mean_dim", "head", "output",
    ]  # fmt: skip
    assert "body" not in dict(program.module.named_modules())


def test_redirect_puts_a_chain_behind_a_node():
    program, x = small_cnn(), image()
    expected = program.call(x)
    with program.edit() as edit:
        relu = node_named(program, "relu_default")
        behind = relu.next
        half = edit.call(aten.mul.Tensor, relu, 0.5, before=behind)
        whole = edit.call(aten.mul.Tensor, half, 2.0, before=behind)
        edit.redirect(relu, whole)
    program.verify()
    assert half.args[0] is relu
    assert {user.name for user in whole.users} == {"body_conv", "add_tensor"}
    torch.testing.assert_close(program.call(x), expected)


def test_redirect_of_an_output():
    program, x = small_cnn(), image()
    with program.edit() as edit:
        edit.redirect(node_named(program, "head"), node_named(program, "mean_dim"))
    program.verify()
    assert program.call(x).shape == (2, 8)
    assert "head" not in dict(program.module.named_modules())


def test_redirect_to_something_computed_from_all_users_is_refused():
    program = small_cnn()
    with program.edit() as edit, pytest.raises(ProgramError, match="no user of %stem can take"):
        edit.redirect(node_named(program, "stem"), node_named(program, "head"))
    assert not edit.result().changed


def test_redirect_to_something_that_comes_later_is_refused():
    b = Builder()
    x = b.input("x", 2, 4)
    first, second = b.call(aten.relu.default, x), b.call(aten.neg.default, x)
    early = b.call(aten.abs.default, first)
    late = b.call(aten.sin.default, second)
    program = b.program(early, late)
    with pytest.raises(RuntimeError, match="before it has been defined"), program.edit() as edit:
        edit.redirect(first, late)


# -- values ----------------------------------------------------------------------------------


def test_values_behind_a_change_follow_it():
    program = small_cnn()
    with program.edit() as edit:
        conv, relu = node_named(program, "body_conv"), node_named(program, "relu_default")
        edit.redirect(node_named(program, "add_tensor"), conv)
        edit.replace(conv, nn.Conv2d(8, 8, 3, stride=2), relu)
    assert sizes(node_named(program, "mean_dim"))[1:] == ["8"]
    new = program.find(nn.Conv2d)
    next(new)
    assert sizes(next(new))[1:] == ["8", "3", "3"]


def test_dtypes_follow_as_well():
    program = small_cnn()
    with program.edit() as edit:
        x, stem = program.inputs[0], node_named(program, "stem")
        double = edit.call(aten.to.dtype, x, torch.float64, before=stem)
        edit.replace(stem, nn.Conv2d(3, 8, 3, padding=1).double(), double)
        conv = node_named(program, "body_conv")
        edit.replace(conv, nn.Conv2d(8, 8, 3, padding=1).double(), conv.args[0])
        head = node_named(program, "head")
        edit.replace(head, nn.Linear(8, 20).double(), head.args[0])
    program.verify()
    changed = [n.meta["val"].dtype for n in program.nodes if n.op not in ("placeholder", "output")]
    assert changed == [torch.float64] * len(changed)
    assert program.call(image()).dtype is torch.float64


def test_the_batch_stays_symbolic():
    program = small_cnn()
    symbol = program.inputs[0].meta["val"].shape[0]
    with program.edit() as edit:
        stem = node_named(program, "stem")
        new = edit.replace(stem, nn.Conv2d(3, 8, 3, padding=1), stem.args[0])
        flat = edit.call(aten.flatten.using_ints, new, 1, before=new.next)
        edit.redirect(node_named(program, "head"), flat)
    assert isinstance(flat.meta["val"].shape[0], torch.SymInt)
    assert str(flat.meta["val"].shape[0]) == str(symbol)
    assert program.call(image(7)).shape == (7, 512)


def test_set_arguments():
    program, x = small_cnn(), image()
    with program.edit() as edit:
        mean = node_named(program, "mean_dim")
        edit.set_arguments(mean, node_named(program, "relu_default"), [2, 3])
    program.verify()
    assert "body_conv" not in [node.name for node in program.nodes]
    stem, head = program.module.get_submodule("stem"), program.module.get_submodule("head")
    torch.testing.assert_close(program.call(x), head(stem(x).relu().mean((2, 3))))


# -- additions and removals ------------------------------------------------------------------


def test_constant():
    program, x = small_cnn(), image()
    expected = program.call(x) + 1
    with program.edit() as edit:
        head = node_named(program, "head")
        one = edit.constant(torch.ones(20), before=program.output, name="one")
        edit.redirect(head, edit.call(aten.add.Tensor, head, one, before=program.output))
    program.verify()
    torch.testing.assert_close(program.call(x), expected)
    assert "one" in program.module.state_dict()
    assert sizes(one) == ["20"]


def test_constants_get_free_names():
    program = small_cnn()
    with program.edit() as edit:
        last = node_named(program, "head")
        names = []
        for wanted in ("one", "one", "stem", "forward", "stem.weight.scale", "new.place"):
            one = edit.constant(torch.ones(20), before=program.output, name=wanted)
            last_sum = edit.call(aten.add.Tensor, last, one, before=program.output)
            edit.redirect(last, last_sum)
            last = last_sum
            names.append(one.target)
    program.verify()
    assert names == ["one", "one_1", "stem_1", "forward_1", "stem_weight_scale", "new.place"]
    assert isinstance(program.module.get_submodule("stem"), nn.Conv2d)


def test_additions_that_nothing_uses_are_dropped():
    program = small_cnn()
    before = program.fingerprint()
    with program.edit() as edit:
        one = edit.constant(torch.ones(20), before=program.output)
        edit.call(nn.Linear(20, 20), one, before=program.output)
    program.verify()
    assert program.fingerprint() == before
    assert not edit.result().changed


def test_remove_takes_along_what_only_the_node_used():
    b = Builder(fc=nn.Linear(4, 4), dead=nn.Linear(4, 4))
    x = b.input("x", 2, 4)
    dead = b.call(aten.relu.default, b.call("dead", x))
    program = b.program(b.call("fc", x))
    with program.edit() as edit:
        edit.remove(dead)
    program.verify()
    assert [node.name for node in program.nodes] == ["x", "fc", "output"]
    assert not hasattr(program.module, "dead")
    assert edit.result().nodes_before - edit.result().nodes_after == 2


@pytest.mark.parametrize("name", ["stem", "x", "output"])
def test_what_is_used_cannot_be_removed(name):
    program = small_cnn()
    with program.edit() as edit, pytest.raises(ProgramError, match="cannot be removed"):
        edit.remove(node_named(program, name))
    assert not edit.result().changed
    program.verify()


def test_an_unused_second_name_of_a_module_goes():
    shared = nn.Linear(4, 4)
    b = Builder(first=shared, second=shared)
    x = b.input("x", 2, 4)
    program = b.program(b.call("first", b.call("second", x)))
    with program.edit() as edit:
        edit.redirect(node_named(program, "second"), x)
    program.verify()
    assert set(program.module._modules) == {"first"}


def test_tied_weights_stay_tied():
    program, embedding = tied_embedding()
    with program.edit() as edit:
        linear = next(program.find(aten.linear.default))
        edit.redirect(linear, edit.call(aten.relu.default, linear, before=linear.next))
    program.verify()
    assert program.tensor(node_named(program, "embed_weight")) is embedding.weight
    assert program.module.get_submodule("embed") is embedding


# -- results and limits ----------------------------------------------------------------------


def test_result_counts_and_names_rewrites():
    program = small_cnn()
    with program.edit() as edit:
        relu = node_named(program, "relu_default")
        edit.replace(relu, aten.sigmoid.default, relu.args[0])
        edit.refuse(node_named(program, "head"), "too small")
    result = edit.result(layers=3)
    assert result.changed
    assert (result.nodes_before, result.nodes_after) == (8, 8)
    assert result.summary == "1 rewrite"
    (rewrite,) = result.rewrites
    assert re.fullmatch(r"relu_default -> aten.sigmoid.default \(model.py:\d+\)", rewrite)
    assert result.refused == ("head: too small",)
    assert result.details == {"layers": 3}


def test_nothing_done_is_nothing_changed():
    program = small_cnn()
    before = program.fingerprint()
    with program.edit() as edit:
        pass
    assert not edit.result().changed
    assert edit.result().summary == "nothing to do"
    assert program.fingerprint() == before


@pytest.mark.parametrize("limit", [0, 1, 2, None])
def test_rewrite_limit(limit):
    b = Builder()
    node = b.input("x", 2, 4)
    for _ in range(3):
        node = b.call(aten.relu.default, node)
    program = b.program(node)
    program.rewrite_limit = limit
    with program.edit() as edit:
        for relu in program.find(aten.relu.default):
            new = edit.call(aten.neg.default, relu.args[0], before=relu)
            edit.redirect(relu, new)
    program.verify()
    done = 3 if limit is None else limit
    assert len(edit.result().rewrites) == done
    assert sum(1 for _ in program.find(aten.neg.default)) == done
    assert sum(1 for _ in program.find(aten.relu.default)) == 3 - done
    assert edit.exhausted == (limit is not None)


def narrowed(program, edit):
    """Halves what lies between two layers: right only once both are changed."""
    first, second = program.find(nn.Linear)
    with edit.together("8 channels") as permitted:
        if permitted:
            one, other = program.leaf(first), program.leaf(second)
            one.weight, one.bias = nn.Parameter(one.weight[:4]), nn.Parameter(one.bias[:4])
            other.weight = nn.Parameter(other.weight[:, :4])
            for node in (first, second):
                edit.touch(node)
            (reshape,) = program.find(aten.reshape.default)
            edit.set_arguments(reshape, first, [-1, 4])


def two_layers():
    b = Builder(first=nn.Linear(6, 8), second=nn.Linear(8, 3))
    x = b.call("first", b.input("x", 2, 6))
    return b.program(b.call("second", b.call(aten.reshape.default, x, [-1, 8])))


def test_many_changes_are_one_rewrite():
    program = two_layers()
    with program.edit() as edit:
        narrowed(program, edit)
    program.verify()
    assert edit.result().rewrites == ("8 channels",)
    assert sizes(node_named(program, "first"))[1] == "4"
    assert program(torch.randn(2, 6))[0].shape == (2, 3)


def test_many_changes_can_be_forbidden_together():
    program = two_layers()
    program.rewrite_limit = 0
    before = program.fingerprint()
    with program.edit() as edit:
        narrowed(program, edit)
    assert not edit.result().changed
    assert program.fingerprint() == before


def test_a_rewrite_after_many_counts_again():
    program = two_layers()
    with program.edit() as edit:
        narrowed(program, edit)
        (reshape,) = program.find(aten.reshape.default)
        edit.set_arguments(reshape, reshape.args[0], [2, 4])
    assert len(edit.result().rewrites) == 2


def test_changes_need_an_open_edit():
    program = small_cnn()
    with program.edit() as edit:
        pass
    relu, text = node_named(program, "relu_default"), program.text()
    for change in (
        lambda: edit.replace(relu, aten.neg.default, relu.args[0]),
        lambda: edit.redirect(relu, relu.args[0]),
        lambda: edit.call(aten.neg.default, relu, before=program.output),
        lambda: edit.constant(torch.ones(1), before=program.output),
    ):
        with pytest.raises(RuntimeError, match="with block"):
            change()
    assert program.text() == text


def test_an_exception_inside_leaves_a_valid_program():
    program, x = small_cnn(), image()
    with pytest.raises(KeyError, match="oops"), program.edit() as edit:  # noqa: PT012
        relu = node_named(program, "relu_default")
        edit.replace(relu, aten.sigmoid.default, relu.args[0])
        edit.constant(torch.ones(3), before=program.output)
        edit.call(nn.Linear(20, 5), node_named(program, "head"), before=program.output)
        raise KeyError("oops")
    program.verify()
    assert [n.name for n in program.nodes if n.op == "get_attr"] == []
    assert set(program.module._modules) == {"stem", "body", "head"}
    assert program.call(x).shape == (2, 20)
