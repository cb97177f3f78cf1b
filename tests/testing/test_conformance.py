"""The kit itself: passes that break the contract in one way each must fail the right checks."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import nn

from fxopt.analysis import Fact
from fxopt.errors import InputError
from fxopt.ir import PassResult
from fxopt.passes import Exact, Lossy, Pass, PassInfo
from fxopt.testing import ConformanceError, check_pass, make_case

aten = torch.ops.aten


def info(**changes):
    return PassInfo(**{"name": "bad", "stage": "simplify", "fidelity": Exact(), **changes})


NO_RELU = Fact(
    "no_relu",
    "no relu is left",
    lambda program: (f"%{node.name} is one" for node in program.find(aten.relu.default)),
)


@dataclass(frozen=True)
class Good(Pass):
    """Relu as a maximum with zero: exact, and everything else that a pass should be."""

    times: int = 1
    info = info(name="good", provides=("no_relu",))

    def run(self, program, context):
        with program.edit() as edit:
            for node in program.find(aten.relu.default):
                edit.replace(node, aten.clamp_min.default, node.args[0], 0)
        return edit.result()


@dataclass(frozen=True)
class Inexact(Good):
    """Replaces relu by gelu."""

    def run(self, program, context):
        with program.edit() as edit:
            for node in program.find(aten.relu.default):
                edit.replace(node, aten.gelu.default, node.args[0])
        return edit.result()


@dataclass(frozen=True)
class Scales(Good):
    """Changes a weight that no rewrite tells of."""

    factor: float = 1 + 1e-6

    def run(self, program, context):
        for node in program.find(nn.Linear):
            program.leaf(node).weight.data.mul_(self.factor)
        return super().run(program, context)


@dataclass(frozen=True)
class Corrupts(Good):
    """Scales a weight up before a relu, and forgets to scale it back."""

    info = info(provides=())

    def run(self, program, context):
        nodes = list(program.find(nn.Linear))
        for node in nodes:
            program.leaf(node).weight.data.mul_(2)
        return PassResult(changed=bool(nodes), nodes_before=0, nodes_after=0, summary="doubled")


@dataclass(frozen=True)
class ClaimsNothing(Good):
    def run(self, program, context):
        super().run(program, context)
        return PassResult(changed=False)


@dataclass(frozen=True)
class ClaimsChange(Good):
    def run(self, program, context):
        result = super().run(program, context)
        return PassResult(True, result.nodes_before, result.nodes_after, "much")


@dataclass(frozen=True)
class LeavesOne(Good):
    """Provides a fact that does not hold: one relu is left."""

    def run(self, program, context):
        with program.edit() as edit:
            for node in list(program.find(aten.relu.default))[1:]:
                edit.replace(node, aten.clamp_min.default, node.args[0], 0)
        return edit.result()


@dataclass(frozen=True)
class Unending(Good):
    """Finds something to do each time."""

    info = info(provides=())

    def run(self, program, context):
        with program.edit() as edit:
            for node in list(program.find(aten.clamp_min.default, aten.relu.default)):
                new = edit.call(aten.mul.Tensor, node.args[0], 1.0, before=node)
                edit.replace(node, aten.clamp_min.default, new, 0)
        return edit.result()


@dataclass(frozen=True)
class Dangles(Good):
    def run(self, program, context):
        for node in program.find(aten.relu.default):
            with program.graph.inserting_before(node):
                new = program.graph.call_function(aten.neg.default, (node.args[0],))
                new.meta["val"] = node.meta["val"]
        program.module.recompile()
        return super().run(program, context)


@dataclass(frozen=True)
class Untyped(Good):
    """Adds a node without going through the editor."""

    def run(self, program, context):
        found = list(program.find(aten.relu.default))
        for node in found:
            node.target, node.args = aten.clamp_min.default, (node.args[0], 0)
            del node.meta["val"]
        program.module.recompile()
        count = len(program.nodes)
        return PassResult(bool(found), count, count, "relus", tuple("relu" for _ in found))


@dataclass(frozen=True)
class Raises(Good):
    def run(self, program, context):
        raise ZeroDivisionError("oops")


@dataclass(frozen=True)
class ReturnsNone(Good):
    def run(self, program, context):
        super().run(program, context)


@dataclass(frozen=True)
class Random(Good):
    """Changes weights at random, by less than rounding."""

    def run(self, program, context):
        result = super().run(program, context)
        if result.changed:
            for node in program.find(nn.Linear):
                weight = program.leaf(node).weight
                weight.data.mul_(1 + 1e-12 * torch.rand((), dtype=torch.float64))
        return result


CACHE = {}


@dataclass(frozen=True)
class Caches(Good):
    """Keeps a tensor between runs, and so shares it between programs."""

    def run(self, program, context):
        for node in program.find(nn.Linear):
            leaf = program.leaf(node)
            leaf.weight = CACHE.setdefault((str(node.target), leaf.weight.shape), leaf.weight)
        return super().run(program, context)


@dataclass(frozen=True)
class IgnoresLimit(Good):
    def run(self, program, context):
        program.rewrite_limit = None
        return super().run(program, context)


@dataclass(frozen=True)
class HalfRewrites(Good):
    """Negates in one rewrite what another one is to negate back."""

    info = info(provides=())

    def run(self, program, context):
        with program.edit() as edit:
            for node in list(program.find(aten.relu.default)):
                clamp = edit.replace(node, aten.clamp_min.default, node.args[0], 0)
                edit.redirect(clamp, edit.call(aten.neg.default, clamp, before=clamp.next))
                if clamp.users:
                    (first,) = clamp.users
                    edit.redirect(first, edit.call(aten.neg.default, first, before=first.next))
        return edit.result()


@dataclass(frozen=True)
class FixesTheBatch(Good):
    """Writes the batch size of the example into the graph."""

    def run(self, program, context):
        result = super().run(program, context)
        if result.changed:
            batch = len(context.examples[0][0])
            with program.edit() as edit:
                for node in program.find(aten.clamp_min.default):
                    sizes = [batch, *node.meta["val"].shape[1:]]
                    view = edit.call(aten.reshape.default, node.args[0], sizes, before=node)
                    edit.replace(node, aten.clamp_min.default, view, 0)
        return result


class Uncopyable(nn.ReLU):
    def __deepcopy__(self, memo):
        raise TypeError("not me")


Uncopyable.__module__ = nn.ReLU.__module__


@dataclass(frozen=True)
class AddsUncopyable(Good):
    def run(self, program, context):
        with program.edit() as edit:
            for node in program.find(aten.relu.default):
                edit.replace(node, Uncopyable(), node.args[0])
        return edit.result()


@dataclass(frozen=True)
class Miscounts(Good):
    def run(self, program, context):
        result = super().run(program, context)
        return PassResult(result.changed, 1, 2, result.summary, result.rewrites)


@dataclass(frozen=True)
class Idle(Good):
    info = info(provides=())

    def run(self, program, context):
        return PassResult(changed=False)


BAD = {
    Inexact: {"is_exact"},
    Scales: {"is_exact", "respects_a_limit_of_zero", "is_idempotent", "rewrites_stand_alone"},
    Corrupts: {"is_exact", "respects_a_limit_of_zero", "is_idempotent", "counts_nodes"},
    ClaimsNothing: {"tells_whether_it_changed"},
    ClaimsChange: {"is_idempotent", "respects_a_limit_of_zero"},
    LeavesOne: {"provides_its_facts"},
    Unending: {"is_idempotent"},
    Dangles: {"leaves_a_program", "counts_nodes", "respects_a_limit_of_zero"},
    Untyped: {"leaves_a_program", "respects_a_limit_of_zero"},
    Random: {"is_deterministic"},
    Caches: {"leaves_other_programs_alone"},
    IgnoresLimit: {"respects_a_limit_of_zero", "rewrites_stand_alone"},
    HalfRewrites: {"rewrites_stand_alone"},
    FixesTheBatch: {"runs_at_two_batch_sizes", "is_exact"},
    AddsUncopyable: {"result_can_be_copied", "leaves_a_program"},
    Miscounts: {"counts_nodes"},
    Idle: {"acts_somewhere"},
}


class TwoReLUs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.first(x))))


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    return make_case("relus", TwoReLUs().double(), torch.randn(2, 4, dtype=torch.float64))


def failures(item, case, **options):
    """The names of the checks that fail, without the case."""
    checks = check_pass(item, cases=[case], facts=[NO_RELU], **options)
    return {check.name.partition("[")[0] for check in checks if fails(check)}


def fails(check):
    try:
        check()
    except ConformanceError:
        return True
    return False


def test_a_good_pass_passes(case):
    assert failures(Good(), case) == set()


@pytest.mark.parametrize("cls", BAD, ids=lambda cls: cls.__name__)
def test_a_bad_pass_fails_its_checks(cls, case):
    CACHE.clear()
    failed = failures(cls(), case)
    assert failed >= BAD[cls]
    # what it is not guilty of, it is not blamed for
    assert not failed & {"is_frozen_dataclass", "declares_itself", "text_form_round_trips"}


@pytest.mark.parametrize("cls", [Raises, ReturnsNone])
def test_a_pass_that_breaks_down_fails_every_check_of_a_program(cls, case):
    failed = failures(cls(), case)
    assert {"leaves_a_program", "is_exact", "acts_somewhere", "is_deterministic"} <= failed


def test_the_error_names_what_and_where(case):
    checks = {check.name: check for check in check_pass(Raises(), cases=[case], facts=[NO_RELU])}
    with pytest.raises(ConformanceError, match=r"ZeroDivisionError: oops(.|\n)*on the case relus"):
        checks["is_exact[relus]"]()


# -- declarations ------------------------------------------------------------------------------


class NoDataclass(Good):
    pass


@dataclass
class NotFrozen(Pass):
    info = info()

    def run(self, program, context):
        raise NotImplementedError


@dataclass(frozen=True)
class NoDefault(Pass):
    ratio: float
    info = info()
    run = Good.run


@dataclass(frozen=True)
class NoInfo(Pass):
    info: ClassVar = {"name": "bad"}
    run = Good.run


@dataclass(frozen=True)
class FactsAsText(Good):
    info = info(provides="no_relu")


@dataclass(frozen=True)
class UnknownFact(Good):
    info = info(provides=("no_such_fact",))


@dataclass(frozen=True)
class AfterItself(Good):
    info = info(after=("bad",))


@dataclass(frozen=True)
class ListSetting(Good):
    layers: list = field(default_factory=list)


@dataclass(frozen=True)
class Forgetful(Good):
    """Its setting does not survive the text form."""

    name: str = ""

    def __post_init__(self):
        object.__setattr__(self, "name", self.name + "!")


DECLARATIONS = [
    (NoDataclass(), "is_frozen_dataclass", "no frozen dataclass"),
    (NotFrozen(), "is_frozen_dataclass", "no frozen dataclass"),
    (NoDefault(0.5), "has_defaults", "the setting ratio has no default"),
    (NoInfo(), "declares_itself", "info is no PassInfo"),
    (FactsAsText(), "declares_itself", "provides is no tuple of texts"),
    (UnknownFact(), "declares_itself", "nobody declares the fact no_such_fact"),
    (AfterItself(), "declares_itself", "before or after itself"),
    (ListSetting(), "can_be_copied", "cannot be hashed"),
    (Forgetful(), "text_form_round_trips", "reads back as"),
]


@pytest.mark.parametrize(("item", "name", "reason"), DECLARATIONS, ids=lambda v: type(v).__name__)
def test_a_bad_declaration_is_told(item, name, reason, case):
    checks = {check.name: check for check in check_pass(item, cases=[case], facts=[NO_RELU])}
    with pytest.raises(ConformanceError, match=reason):
        checks[name]()


# -- expected failures, requirements, and passes that are not exact ------------------------------


def test_an_expected_failure_is_none(case):
    reasons = {
        "is_exact[relus]": "it is an approximation",
        "rewrites_stand_alone[relus]": "as it is",
    }
    assert failures(Inexact(), case, expected_failures=reasons) == set()


def test_what_was_expected_to_fail_and_does_not_is_told(case):
    reasons = {"is_exact[relus]": "it used to be an approximation"}
    checks = {
        check.name: check
        for check in check_pass(Good(), cases=[case], facts=[NO_RELU], expected_failures=reasons)
    }
    with pytest.raises(ConformanceError, match="though it is expected to fail"):
        checks["is_exact[relus]"]()


def test_a_misspelt_expected_failure_is_told(case):
    with pytest.raises(InputError, match="did you mean 'is_exact\\[relus\\]'"):
        list(check_pass(Good(), cases=[case], expected_failures={"is_exat[relus]": "why"}))


@dataclass(frozen=True)
class LossyGelu(Inexact):
    info = info(fidelity=Lossy())


def test_a_lossy_pass_need_not_be_exact(case):
    assert failures(LossyGelu(), case) == set()


@dataclass(frozen=True)
class NeedsNoReLU(Pass):
    """Raises where what it requires does not hold."""

    info = info(requires=("no_relu",))

    def run(self, program, context):
        assert NO_RELU.holds(program)
        with program.edit() as edit:
            for node in program.find(aten.clamp_min.default):
                edit.replace(node, aten.relu.default, node.args[0])
        return edit.result()


def test_a_pass_is_run_only_where_what_it_requires_holds(case):
    assert failures(NeedsNoReLU(), case) == {"acts_somewhere"}
    assert failures(NeedsNoReLU(), case, prepare=[Good()]) == set()


@dataclass(frozen=True)
class Choosy(Good):
    """Says that there is nothing to do, and would raise if it were run all the same."""

    def inapplicable(self, program, context):
        return None if any(program.find(nn.Conv2d)) else "no convolution"

    def run(self, program, context):
        raise AssertionError


def test_an_inapplicable_pass_is_not_run(case):
    assert failures(Choosy(), case) == {"acts_somewhere", "provides_its_facts"}


def test_nothing_is_captured_before_a_check_is_called():
    names = [str(check) for check in check_pass(Good())]
    assert "is_exact[residual]" in names
    assert len(names) == len(set(names))
