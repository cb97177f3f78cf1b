"""Untouched weights are shared with the program before a pass, ties and all."""

import copy
import operator

import torch
from torch import nn

from fxopt.ir import PassResult
from fxopt.pipeline.identity import difference, same_bits
from fxopt.pipeline.sharing import share_tensors
from tests.building import Builder, aten, small_cnn
from tests.pipeline.support import Coarsen, ReluModules, SwapAdd, declare, run


def pointers(program):
    return {name: t.data_ptr() for name, t in program.module.named_parameters()}


def test_untouched_weights_are_those_of_the_user():
    program = small_cnn()
    outcome = run([ReluModules(), Coarsen(), SwapAdd()], program)
    assert [record.status for record in outcome.records] == ["applied"] * 3
    before, after = pointers(program), pointers(outcome.program)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"head.weight"}  # its bias is another object of the same value
    assert outcome.program.module.stem.weight is program.module.stem.weight
    assert outcome.exact.module.head.weight is program.module.head.weight
    assert outcome.records[0].details["shared"] == 6


def test_sharing_finds_tensors_under_other_names():
    def renames(program, _):
        with program.edit() as edit:
            node = next(program.find(nn.Linear))
            leaf = copy.deepcopy(program.leaf(node))
            new = edit.call(leaf, *node.args, before=program.output)
            edit.redirect(node, new)
        return edit.result()

    program = small_cnn()
    outcome = run([declare(renames)], program)
    assert outcome.records[0].status == "applied", outcome.records[0].reason
    after = dict(outcome.program.module.named_parameters())
    assert "head.weight" not in after
    ids = {id(tensor) for tensor in after.values()}
    assert {id(program.module.head.weight), id(program.module.head.bias)} <= ids


def tied_program():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    b = Builder(first=first, second=second)
    return b.program(b.call("second", b.call("first", b.input("x", 2, 4))))


def test_ties_are_preserved():
    before = tied_program()
    after = before.clone()
    assert share_tensors(before, after) == 3
    module = after.module
    assert module.first.weight is module.second.weight is before.module.first.weight


def test_what_a_pass_untied_stays_untied():
    before = tied_program()
    after = before.clone()
    after.module.second.weight = nn.Parameter(after.module.second.weight.detach().clone())
    assert difference(before, after) == "other weights are tied"
    share_tensors(before, after)
    assert after.module.first.weight is before.module.first.weight
    assert after.module.second.weight is not after.module.first.weight


def test_what_a_pass_tied_stays_tied():
    before = tied_program()
    before.module.second.weight = nn.Parameter(before.module.first.weight.detach().clone())
    after = before.clone()
    after.module.second.weight = after.module.first.weight
    share_tensors(before, after)
    assert after.module.second.weight is after.module.first.weight
    assert after.module.first.weight is before.module.first.weight


def test_what_another_tensor_only_resembles_is_not_shared():
    before = tied_program()
    weight = before.module.first.weight

    def changed(change):
        after = before.clone()
        change(after.module.first.weight)
        share_tensors(before, after)
        return after.module.first.weight is not weight

    assert changed(lambda w: w.data.mul_(1 + 1e-6))
    assert changed(lambda w: w.requires_grad_(False))
    assert changed(lambda w: setattr(w, "data", w.data.t().contiguous().t()))
    assert not changed(lambda w: None)


def test_same_bits_sees_nans_and_signs():
    nan = torch.tensor([float("nan"), 1.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))
    assert same_bits(torch.tensor(True), torch.tensor(True))
    assert same_bits(torch.empty(0, 3), torch.empty(0, 3))


def test_recurrent_modules_keep_their_list_of_weights():
    lstm = nn.LSTM(4, 4)
    b = Builder(lstm=lstm)
    out = b.call("lstm", b.input("x", 2, 3, 4))
    before = b.program(b.call(operator.getitem, out, 0))
    after = before.clone()
    assert share_tensors(before, after) == 4
    twin = after.module.lstm
    assert twin.weight_ih_l0 is lstm.weight_ih_l0
    assert all(
        mine is theirs for mine, theirs in zip(twin._flat_weights, lstm._flat_weights, strict=True)
    )


def test_buffers_are_shared_too():
    b = Builder(bn=nn.BatchNorm1d(4))
    before = b.program(b.call(aten.neg.default, b.call("bn", b.input("x", 2, 4))))
    after = before.clone()
    after.module.bn.running_mean.add_(1)
    share_tensors(before, after)
    assert after.module.bn.running_var is before.module.bn.running_var
    assert after.module.bn.running_mean is not before.module.bn.running_mean


def test_a_rolled_back_pass_leaves_nothing_shared():
    def corrupts(program, _):
        program.module.head.weight.data.zero_()
        return PassResult(changed=True)

    program = small_cnn()
    outcome = run([declare(corrupts)], program)
    assert outcome.program is program
    assert outcome.exact is program
