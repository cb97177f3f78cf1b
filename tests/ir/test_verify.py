"""Each invariant, broken on purpose."""

import operator

import pytest
import torch
from torch import fx, nn

from fxopt.errors import ProgramError
from fxopt.ir import LeafModule, Program, Signature, verify
from fxopt.ir.verify import RULES
from tests.building import Builder, aten, small_cnn


def node_named(program, name):
    return next(node for node in program.nodes if node.name == name)


def with_method_call(program):
    relu = node_named(program, "relu_default")
    with program.graph.inserting_after(relu):
        method = program.graph.call_method("relu", (relu,))
    method.meta.update(relu.meta)


def with_late_argument(program):
    node_named(program, "relu_default").args = (node_named(program, "body_conv"),)


def with_foreign_argument(program):
    node_named(program, "relu_default").args = (fx.Graph().placeholder("stranger"),)


def with_late_input(program):
    with program.graph.inserting_before(program.output):
        late = program.graph.placeholder("late")
    late.meta["val"] = program.inputs[0].meta["val"]


def with_in_place_operator(program):
    node_named(program, "relu_default").target = aten.relu_.default


def with_out_variant(program):
    node_named(program, "relu_default").target = aten.relu.out


def with_plain_function(program):
    node_named(program, "relu_default").target = torch.relu


def with_operator_on_a_tensor(program):
    node_named(program, "relu_default").target = operator.neg


def with_missing_module(program):
    node_named(program, "stem").target = "gone"


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * self.weight


def with_custom_module(program):
    program.module.stem = Custom()


def with_container(program):
    program.module.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))


def with_missing_attribute(program):
    with program.graph.inserting_before(node_named(program, "stem")):
        node = program.graph.get_attr("gone")
    node.meta["val"] = torch.zeros(())


def with_attribute_that_is_no_tensor(program):
    program.module.scale = 2.0
    with program.graph.inserting_before(node_named(program, "stem")):
        node = program.graph.get_attr("scale")
    node.meta["val"] = 2.0


def without_value(program):
    del node_named(program, "relu_default").meta["val"]


def with_another_input(program):
    (x,) = program.inputs
    with program.graph.inserting_before(x):
        program.graph.placeholder("first").meta.update(x.meta)


def with_bare_output(program):
    program.output.args = (program.output.args[0][0],)


def with_two_outputs(program):
    program.output.args = (program.output.args[0] * 2,)


def with_unused_parameter(program):
    program.module.register_parameter("spare", nn.Parameter(torch.ones(2)))


def with_unused_module(program):
    program.module.add_module("spare", nn.Linear(2, 2))


def with_second_name_of_a_module(program):
    program.module.add_module("again", program.module.stem)


BREAKS = [
    (verify.node_kinds, with_method_call, "call_method"),
    (verify.well_formed, with_late_argument, "%relu_default uses %body_conv"),
    (verify.well_formed, with_foreign_argument, "%relu_default uses %stranger"),
    (verify.well_formed, with_late_input, "the input %late comes after"),
    (verify.functions_are_functional, with_in_place_operator, "in place: aten.relu_.default"),
    (verify.functions_are_functional, with_out_variant, "in place: aten.relu.out"),
    (verify.functions_are_functional, with_plain_function, "no operator overload"),
    (verify.functions_are_functional, with_operator_on_a_tensor, "for sizes, on a tensor"),
    (verify.modules_are_leaves, with_missing_module, "gone, which is missing"),
    (verify.modules_are_leaves, with_custom_module, "a Custom, which is no leaf"),
    (verify.modules_are_leaves, with_container, "a Sequential, which is no leaf"),
    (verify.attributes_are_tensors, with_missing_attribute, "gone, which is missing"),
    (verify.attributes_are_tensors, with_attribute_that_is_no_tensor, "a float, not a tensor"),
    (verify.values_are_known, without_value, '%relu_default has no meta["val"]'),
    (verify.signature_fits, with_another_input, "2 placeholders for 1 inputs"),
    (verify.signature_fits, with_bare_output, "not a flat tuple"),
    (verify.signature_fits, with_two_outputs, "2 outputs for 1"),
    (verify.nothing_unreferenced, with_unused_parameter, "the parameter spare"),
    (verify.nothing_unreferenced, with_unused_module, "the parameter spare.weight"),
    (verify.nothing_unreferenced, with_second_name_of_a_module, "the parameter again.weight"),
]


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")
@pytest.mark.parametrize(("rule", "broken", "says"), BREAKS, ids=[b.__name__ for _, b, _ in BREAKS])
def test_broken_program_is_refused(rule, broken, says):
    program = small_cnn()
    broken(program)
    with pytest.raises(ProgramError) as caught:
        program.verify()
    assert any(says in violation for violation in caught.value.violations)
    assert any(says in violation for violation in rule(program))


def test_every_rule_is_broken_by_some_test():
    assert {rule for rule, _, _ in BREAKS} == set(RULES)


def test_all_violations_are_listed_at_once():
    program = small_cnn()
    without_value(program)
    with_unused_module(program)
    with pytest.raises(ProgramError) as caught:
        program.verify()
    assert len(caught.value.violations) == 3  # the value, and the weight and bias of the module


def test_a_leaf_module_of_a_plugin_is_a_leaf():
    class Scale(LeafModule, Custom):
        pass

    b = Builder(scale=Scale())
    b.program(b.call("scale", b.input("x", 2, 8))).verify()


def test_size_arithmetic_is_allowed():
    b = Builder()
    x = b.input("x", 2, 4)
    size = b.call(aten.sym_size.int, x, 0)
    double = b.call(operator.mul, size, 4)
    b.program(b.call(aten.view.default, x, [double])).verify()


def test_a_program_without_weights_is_fine():
    b = Builder()
    x = b.input("x", 2, 4)
    b.program(x, b.call(aten.relu.default, x)).verify()


def test_the_signature_is_compared_by_leaves():
    program = small_cnn()
    _, out_spec = torch.utils._pytree.tree_flatten({"logits": 0})
    twin = Program(program.module, Signature(program.signature.in_spec, out_spec, batch=True))
    twin.verify()
    assert set(twin.call(torch.zeros(1, 3, 8, 8))) == {"logits"}
