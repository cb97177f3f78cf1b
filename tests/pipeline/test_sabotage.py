"""Passes that break their word are caught, rolled back and named; the others go on."""

import random
import re
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fxopt.analysis import Analysis
from fxopt.errors import PassError
from fxopt.ir import LeafModule, PassResult
from fxopt.ir.shapes import infer
from fxopt.passes import Lossy
from fxopt.pipeline import Verification
from tests.building import aten, image, small_cnn
from tests.pipeline.support import (
    FACTS,
    ReluModules,
    SwapAdd,
    context,
    declare,
    outputs,
    run,
    same_weights,
    weights,
)

CHANGED = PassResult(changed=True)


def head(program):
    return program.module.get_submodule("head")


def node_of(program, target):
    return next(iter(program.find(target)))


def corrupts_data(program, _):
    head(program).weight.data.mul_(1.5)
    return CHANGED


def corrupts_in_place(program, _):
    with torch.no_grad():
        for parameter in program.module.parameters():
            parameter.zero_()
    return CHANGED


def corrupts_to_nan(program, _):
    head(program).bias.data[0] = float("nan")
    return CHANGED


def lies_about_exact(program, _):
    with program.edit() as edit:
        node = node_of(program, aten.mean.dim)
        scaled = edit.call(aten.mul.Tensor, node, 1.001, before=next(iter(node.users)))
        edit.redirect(node, scaled)
    return edit.result()


def denies_structure(program, _):
    with program.edit() as edit:
        edit.replace(node_of(program, nn.ReLU), aten.relu.default, program.nodes[1])
    return PassResult(changed=False)


def denies_weights(program, _):
    head(program).weight.data[0, 0] += 1e-7
    return PassResult(changed=False)


def dangling_node(program, _):
    node = node_of(program, aten.mean.dim)
    with program.graph.inserting_after(node):
        extra = program.graph.call_function(aten.neg.default, (node,))
    extra.meta["val"] = node.meta["val"]
    return CHANGED


def dangling_reference(program, _):
    node = node_of(program, nn.ReLU)
    other = small_cnn()
    node.args = (node_of(other, aten.mean.dim),)
    return CHANGED


def dangling_module(program, _):
    del program.module.head
    return CHANGED


def no_value(program, _):
    node = node_of(program, aten.mean.dim)
    with program.graph.inserting_after(node):
        extra = program.graph.call_function(aten.neg.default, (node,))
    node.replace_all_uses_with(extra, delete_user_cb=lambda user: user is not extra)
    return CHANGED


def wrong_value(program, _):
    with program.edit() as edit:
        node = node_of(program, nn.ReLU)
        new = edit.replace(node, nn.ReLU(), *node.args)
    new.meta["val"] = node_of(program, aten.mean.dim).meta["val"]
    return edit.result()


def wrong_value_downstream(program, _):
    """The node that changed carries the right value, the one that uses it an old one."""
    node = node_of(program, aten.mean.dim)
    node.args = (node.args[0], [2])
    node.meta["val"] = infer(program.module, node)
    return CHANGED


def wrong_batch(program, _):
    """Right at the example's batch size, wrong at every other one."""
    with program.edit() as edit:
        node = node_of(program, aten.mean.dim)
        fixed = edit.call(aten.slice.Tensor, node, 0, 0, 2, before=next(iter(node.users)))
        edit.redirect(node, fixed)
    return edit.result()


def claims_a_fact(program, _):
    with program.edit() as edit:
        node = node_of(program, aten.add.Tensor)
        edit.set_arguments(node, *reversed(node.args))
    return edit.result()


def claims_a_fact_idly(program, _):
    return PassResult(changed=False)


def raises(program, _):
    head(program).weight.data.zero_()
    raise ZeroDivisionError("one too many")


def raises_deep_inside(program, _):
    with program.edit() as edit:
        edit.replace(node_of(program, nn.ReLU), nn.Conv2d(5, 5, 1), program.inputs[0])
    return edit.result()


def advises(program, _):
    raise PassError("too fine", hint="be coarse")


def exits(program, _):
    sys.exit(3)


def returns_none(program, _):
    head(program).weight.data.zero_()


def returns_text(program, _):
    return "done"


def returns_nonsense(program, _):
    head(program).weight.data.mul_(1 + 1e-7)
    return PassResult(changed=True, details=None)


class Sealed(LeafModule):
    """Its weights cannot be set once it is made."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.sealed = True

    def __setattr__(self, name, value):
        if getattr(self, "sealed", False) and name == "weight":
            raise PermissionError("sealed")
        super().__setattr__(name, value)

    def forward(self, x):
        return x + 0 * self.weight.sum()


def seals_weights(program, _):
    with program.edit() as edit:
        node = node_of(program, aten.mean.dim)
        sealed = Sealed(program.module.stem.bias.detach().clone())
        edit.redirect(node, edit.call(sealed, node, before=next(iter(node.users))))
        stem = node_of(program, nn.Conv2d)
        plain = nn.Conv2d(3, 8, 3, padding=1)
        plain.load_state_dict(program.leaf(stem).state_dict())
        plain.bias.data += 1e-9
        edit.replace(stem, plain, *stem.args)
    return edit.result()


def other_signature(program, _):
    program.signature = type(program.signature)(
        program.signature.in_spec, program.signature.out_spec, batch=False
    )
    return CHANGED


def other_inputs(program, _):
    node = program.inputs[0]
    node.meta["val"] = torch.empty(2, 3, 8, 8, device="meta")
    return CHANGED


def trains(program, _):
    program.module.train()
    return CHANGED


def forgets_to_recompile(program, _):
    """The generated code still computes the right thing; the graph no longer does."""
    node = node_of(program, nn.ReLU)
    node.op, node.target = "call_function", aten.neg.default
    return CHANGED


def no_call_method(program, _):
    node = node_of(program, nn.ReLU)
    with program.graph.inserting_before(node):
        new = program.graph.call_method("relu", node.args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    program.graph.erase_node(node)
    return CHANGED


class WritesToInput(LeafModule):
    def forward(self, x):
        x.add_(0)
        return x.add_(1).sub(1)


class Uncopyable(LeafModule):
    def forward(self, x):
        return x.relu()

    def __deepcopy__(self, memo):
        raise TypeError("there is only one of me")


def writes_to_inputs(program, _):
    with program.edit() as edit:
        stem = next(iter(program.inputs[0].users))
        edit.set_arguments(stem, edit.call(WritesToInput(), *stem.args, before=stem))
    return edit.result()


def cannot_be_copied(program, _):
    with program.edit() as edit:
        node = node_of(program, nn.ReLU)
        edit.replace(node, Uncopyable(), *node.args)
    return edit.result()


def other_outputs(program, _):
    with program.edit() as edit:
        linear = node_of(program, nn.Linear)
        edit.redirect(linear, edit.call(aten.mul.Tensor, linear, 1j, before=program.output))
    return edit.result()


HERE = r"test_sabotage\.py:\d+ in "

SABOTEURS = [
    (corrupts_data, {}, "declares itself exact, but output 0 differs by .* at batch size 2"),
    (corrupts_in_place, {}, "declares itself exact, but output 0 differs by 1"),
    (corrupts_to_nan, {}, "declares itself exact, but output 0 has NaN"),
    (corrupts_to_nan, {"fidelity": Lossy()}, "no longer comparable: output 0 has NaN"),
    (lies_about_exact, {}, "declares itself exact, but .* by .*e-04 .* where 1e-04 is allowed"),
    (denies_structure, {}, "claims to have changed nothing, but %.* is not the node %"),
    (denies_weights, {}, "claims to have changed nothing, but the tensor head.weight"),
    (dangling_node, {}, "%neg.* is left dangling"),
    (dangling_reference, {}, "breaks the invariants: .*uses %mean"),
    (dangling_module, {}, "breaks the invariants: .*module head, which is missing"),
    (no_value, {}, 'breaks the invariants: %neg.* has no meta."val".'),
    (no_call_method, {}, "breaks the invariants: .*is a call_method"),
    (wrong_value, {}, r'"val". of %\w+ is f32.*, 8\], but the node yields f32.*, 8, 8, 8\]'),
    (wrong_value_downstream, {}, r'"val". of %head is f32.*, 20\], but .* f32.*, 8, 20\]'),
    (wrong_batch, {}, "at batch size 3|yields"),
    (claims_a_fact, {"provides": ("never",)}, "provides never .nothing is as.* everything"),
    (claims_a_fact_idly, {"provides": ("never",)}, "provides never .*not hold: everything"),
    (raises, {}, f"failed: ZeroDivisionError: one too many .at .*{HERE}raises"),
    (raises_deep_inside, {}, f"failed: ProgramError: .*{HERE}raises_deep_inside"),
    (advises, {}, f"failed: PassError: too fine; be coarse .at .*{HERE}advises"),
    (exits, {}, f"failed: SystemExit: 3 .at .*{HERE}exits"),
    (returns_none, {}, "returned a NoneType, not a PassResult"),
    (returns_text, {}, "returned a str, not a PassResult"),
    (returns_nonsense, {}, "returned a PassResult that makes no sense: TypeError"),
    (seals_weights, {}, "added a module whose weights cannot be set: PermissionError: sealed"),
    (other_signature, {}, "the signature is another one"),
    (other_inputs, {}, "the inputs are"),
    (trains, {}, "left in train mode"),
    (forgets_to_recompile, {}, "declares itself exact, but"),
    (writes_to_inputs, {}, "writes to its input 0"),
    (cannot_be_copied, {}, "cannot be copied: TypeError: there is only one of me"),
    (other_outputs, {"fidelity": Lossy()}, "no longer comparable: output 0 is .*not f32"),
]


@pytest.mark.parametrize(
    ("saboteur", "declared", "reason"),
    SABOTEURS,
    ids=[f"{run.__name__}{'-lossy' * ('fidelity' in rest)}" for run, rest, _ in SABOTEURS],
)
def test_saboteur_is_caught_and_named(saboteur, declared, reason):
    program = small_cnn()
    saved, expected, digest = weights(program), outputs(program, 5), program.fingerprint()

    outcome = run([SwapAdd(), declare(saboteur, **declared), ReluModules()], program)

    first, caught, last = outcome.records
    assert (first.name, first.status) == ("relu_modules", "applied")
    assert (last.name, last.status) == ("swap_add", "applied")
    assert caught.status == "rolled back"
    assert caught.reason.startswith(f"{saboteur.__name__} ")
    assert_matches(reason, caught.reason)
    torch.testing.assert_close(outputs(outcome.program, 5), expected)
    assert not list(FACTS["relus_are_modules"].counterexamples(outcome.program))
    assert same_weights(program, saved)
    assert program.fingerprint() == digest
    assert same_weights(outcome.program, saved)
    outcome.program.verify()


def assert_matches(pattern, text):
    assert re.search(pattern, text), text


@dataclass(frozen=True)
class CountNodes(Analysis):
    name = "count_nodes"

    def run(self, program):
        return len(program.nodes)


def claims_to_preserve(program, context):
    context.analysis(CountNodes(), program)
    with program.edit() as edit:
        node = node_of(program, aten.mean.dim)
        edit.redirect(node, edit.call(aten.mul.Tensor, node, 1, before=next(iter(node.users))))
    return edit.result()


def test_false_preserves_is_caught_when_checking():
    item = declare(claims_to_preserve, preserves=("count_nodes",))
    caught = run([item, ReluModules()], checking=True).records[1]
    assert caught.status == "rolled back"
    assert (
        "claims_to_preserve claims a false `preserves`: the analysis count_nodes" in caught.reason
    )
    assert run([item]).records[0].status == "applied"  # only the checking mode recomputes
    honest = declare(claims_to_preserve)
    assert run([honest], checking=True).records[0].status == "applied"


def test_analyses_of_a_rolled_back_pass_are_forgotten():
    seen = []

    def poisons(program, context):
        head(program).weight.data.zero_()
        with program.edit() as edit:
            node = node_of(program, nn.ReLU)
            edit.replace(node, nn.ReLU(), edit.call(nn.Identity(), *node.args, before=node))
        context.analysis(CountNodes(), program)
        return edit.result()

    def looks(program, context):
        seen.append((context.analysis(CountNodes(), program), len(program.nodes)))
        return PassResult(changed=False)

    records = run([declare(poisons), declare(looks, stage="lower")]).records
    assert records[0].status == "rolled back"
    assert seen[0][0] == seen[0][1]


def test_a_pass_cannot_spoil_what_others_are_told():
    examples = [[image(2)], [image(3)]]
    told = context(examples=examples)
    saved = [flat[0].clone() for flat in examples]

    def spoils(program, context):
        for flat in context.examples:
            flat[0].zero_()
        context.examples = []
        context.calibration = "none of your business"
        head(program).weight.data.mul_(2)
        return CHANGED

    record = run([declare(spoils)], context=told).records[0]
    assert record.status == "rolled back"  # compared on inputs that are not all zero
    assert all(torch.equal(flat[0], old) for flat, old in zip(examples, saved, strict=True))
    assert told.examples is examples
    assert told.calibration is None


def test_global_state_is_put_back():
    def meddles(program, _):
        torch.manual_seed(77)
        random.seed(77)
        torch.set_grad_enabled(False)
        return PassResult(changed=False)

    program = small_cnn()
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    run([declare(meddles)], program)
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_keyboard_interrupt_passes_through():
    def interrupted(program, _):
        head(program).weight.data.zero_()
        raise KeyboardInterrupt

    program = small_cnn()
    saved = weights(program)
    with pytest.raises(KeyboardInterrupt):
        run([declare(interrupted)], program)
    assert same_weights(program, saved)


def test_inapplicable_that_raises_or_meddles_is_caught():
    def asks(program):
        head(program).weight.data.zero_()
        raise LookupError("where am I")

    def meddles(program):
        head(program).weight.data.zero_()

    program = small_cnn()
    saved = weights(program)
    idle = lambda program, _: PassResult(changed=False)  # noqa: E731
    raising = declare(idle, "raising", inapplicable=asks)
    meddling = declare(idle, "meddling", inapplicable=meddles)
    records = run([raising, meddling, ReluModules()], program).records
    assert [record.status for record in records] == ["applied", "rolled back", "rolled back"]
    assert "meddling claims to have changed nothing, but the tensor" in records[1].reason
    assert "raising failed to say whether it is applicable: LookupError" in records[2].reason
    assert same_weights(program, saved)


def test_verification_catches_a_pass_that_reaches_around_its_copy():
    program = small_cnn()

    def reaches_around(own, _):
        head(program).weight.data[0, 0] += 1
        return SwapAdd().run(own, None)

    record = run([declare(reaches_around)], program, instruments=[Verification()]).records[0]
    assert record.status == "rolled back"
    assert "changed the program before it" in record.reason


def test_dependents_of_a_rolled_back_pass_are_skipped_and_the_rest_completes():
    def provides_in_vain(program, _):
        raise RuntimeError("no")

    provider = declare(
        provides_in_vain, stage="prepare", provides=("relus_are_modules",), before=("swap_add",)
    )
    dependent = declare(claims_a_fact, "dependent", requires=("relus_are_modules",))
    records = run([provider, dependent, SwapAdd()]).records
    assert [record.status for record in records] == ["rolled back", "skipped", "applied"]
    assert "requires relus_are_modules (no aten.relu is left)" in records[1].reason
    assert "%relu" in records[1].reason
