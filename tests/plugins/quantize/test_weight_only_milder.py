"""Few-bit weights that are over a limit: which layers get more bits, measured, and the report."""

import pytest
import torch
from torch import nn

from fxopt.errors import PassError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt.pipeline import PassManager, plan
from fxopt.registry import default_registry
from fxopt_quantize import QuantizeWeights, WeightOnlyEmbedding, WeightOnlyLinear
from fxopt_quantize.weight_only.precisions import Tied, ordered, tied
from tests.plugins.quantize.support import CPU, Tagger, relative


class Decoder(nn.Module):
    """Blocks that add little to what they take, and a head that all depends on."""

    def __init__(self, width=64, words=96, blocks=4):
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.head = nn.Linear(width, words, bias=False)
        with torch.no_grad():
            for block in self.blocks:
                block.weight *= 0.05

    def forward(self, index):
        x = self.table(index)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


def decoder():
    torch.manual_seed(0)
    return Decoder().eval(), torch.randint(0, 96, (4, 6))


def managed(model, index, item, calibrate=False, **limits):
    program = capture_program(model, (index,), {})
    calibration = Calibration([(index,)], program.signature) if calibrate else None
    context = Context(CPU, [[index]], calibration=calibration)
    facts = default_registry().facts
    return PassManager(plan([item], facts, set(facts)), facts, context, **limits).run(program)


def bits_of(program):
    kinds = WeightOnlyLinear, WeightOnlyEmbedding
    return {str(n.target): program.leaf(n).weight_bits for n in program.find(*kinds)}


@pytest.mark.parametrize("calibrate", [False, True])
def test_a_drift_is_kept_by_giving_the_sensitive_layers_more_bits(calibrate):
    model, index = decoder()
    item = QuantizeWeights(group=32, embeddings=False)
    free = managed(model, index, item).records[0]
    result = managed(model, index, item, calibrate, max_drift=free.drift * 0.4)
    record = result.records[0]
    assert record.status == "applied"
    assert record.drift <= free.drift * 0.4
    assert bits_of(result.program) == {"head": 8, **{f"blocks.{i}": 4 for i in range(4)}}
    assert record.summary == "5 layers with 4-bit weights (1 with 8-bit ones), groups of 32"
    assert "is allowed" in record.details["milder"]


def test_eight_bits_keep_a_limit_by_leaving_layers_in_float():
    model, index = decoder()
    item = QuantizeWeights(bits=8, group=32, embeddings=False)
    free = managed(model, index, item).records[0]
    result = managed(model, index, item, max_drift=free.drift * 0.4)
    assert result.records[0].status == "applied"
    assert bits_of(result.program) == {f"blocks.{i}": 8 for i in range(4)}
    assert "head: named in skip" in result.records[0].refused


def milder(item, model, *inputs):
    program = capture_program(model.eval(), inputs, {})
    return item.milder(program.clone(), Context(CPU, [list(inputs)]))


def test_the_table_has_shares_in_the_error_and_in_bytes():
    model, index = decoder()
    costs = milder(QuantizeWeights(group=32), model, index).costs
    errors, gains = zip(*costs.values(), strict=True)
    assert set(list(costs)[:2]) == {"table", "head"}
    assert sum(errors) == pytest.approx(1)
    weights = {"table": 96 * 64, "head": 96 * 64, **{f"blocks.{i}": 64 * 64 for i in range(4)}}
    assert gains == pytest.approx([weights[name] / sum(weights.values()) for name in costs])


def test_what_is_tied_gets_its_bits_together():
    model, index = decoder()
    model.head.weight = model.table.weight
    found = milder(QuantizeWeights(group=32), model, index)
    assert next(iter(found.costs)) == "table, head"
    assert found.passes[0].eight_bits == ("table", "head")
    gain = found.costs["table, head"][1]  # of one matrix
    assert gain == pytest.approx(96 * 64 / (96 * 64 + 4 * 64 * 64))


def test_smaller_groups_come_first_and_the_last_layer_is_not_left():
    model, index = decoder()
    item = QuantizeWeights(group=64)
    passes = milder(item, model, index).passes
    assert passes[0] == QuantizeWeights(group=32)
    assert len(passes[1].eight_bits) == 1
    assert passes[-1].bits == 8
    assert len(passes[-1].skip) == 5
    assert list(passes) == list(milder(item, model, index).passes)


def test_groups_stay_where_rows_do_not_divide_into_smaller_ones():
    model = nn.Sequential(nn.Linear(48, 64), nn.Linear(64, 8))
    passes = milder(QuantizeWeights(group=0), model, torch.randn(2, 48)).passes
    assert {item.group for item in passes} == {0}


def test_all_in_eight_bits_is_said_shortly():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    passes = milder(QuantizeWeights(group=32), model, torch.randn(2, 32)).passes
    assert passes[1] == QuantizeWeights(bits=8, group=32)
    assert [len(item.eight_bits) for item in passes] == [1, 0, 0]


def test_each_milder_setting_errs_less():
    model, index = decoder()
    program = capture_program(model, (index,), {})
    first = QuantizeWeights(bits=3, group=64)
    errors = []
    for item in (first, *milder(first, model, index).passes):
        twin = program.clone()
        item.run(twin, Context(CPU))
        errors.append(relative(twin(index)[0], model(index)))
    assert len(errors) == 13
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 < errors[0]


def test_recurrent_layers_and_calls_in_turn():
    torch.manual_seed(0)
    model, x = Tagger(nn.LSTM(8, 16, batch_first=True), 16), torch.randn(2, 5, 8)
    found = milder(QuantizeWeights(group=0), model, x)
    assert set(found.costs) == {"layer", "head"}
    assert all(error > 0 for error, _ in found.costs.values())
    weights = {"layer": 64 * (8 + 16), "head": 6 * 16}
    assert found.costs["layer"][1] == pytest.approx(weights["layer"] / sum(weights.values()))


def layers(*kept):
    """Layers of one matrix of 100 weights each, by bits and error."""
    return [
        Tied((str(index),), frozenset([torch.ones(100)]), bits, error)
        for index, (bits, error) in enumerate(kept)
    ]


def test_steps_are_in_the_order_of_what_they_mend_for_each_byte():
    steps = ordered(layers((4, 1.0), (4, 8000.0), (8, 0.5)))
    assert [(step.layers.names, step.bits) for step in steps] == [
        (("1",), 8),
        (("1",), None),  # (15 / 255)^2 of its error for 300 bytes, the others' for 50 and more
        (("0",), 8),
        (("2",), None),
        (("0",), None),
    ]
    assert [step.adds for step in steps] == [50, 300, 50, 300, 300]
    assert steps[0].mends + steps[1].mends == pytest.approx(8000)


def test_a_byte_holds_eight_bits_as_well_as_five():
    steps = ordered(layers((4, 1.0), (5, 0.9)))
    assert [(step.layers.names, step.bits, step.adds) for step in steps[:2]] == [
        (("1",), 8, 0),
        (("0",), 8, 50),
    ]


def test_layers_that_share_any_matrix_are_one():
    one, two, three = torch.ones(10), torch.ones(10), torch.ones(10)
    made = [("a", {one}, 4), ("b", {two}, 8), ("c", {three}, 4), ("d", {one, two}, 4)]
    found = tied(Tied((name,), frozenset(own), bits, 1.0) for name, own, bits in made)
    assert [(each.names, each.bits, each.error) for each in found] == [
        (("c",), 4, 1.0),
        (("a", "b", "d"), 4, 3.0),
    ]


def test_named_layers_have_eight_bits():
    model, index = decoder()
    program = capture_program(model, (index,), {}).clone()
    item = QuantizeWeights(group=32, eight_bits=("blocks.*", "head"), skip=("head",))
    item.run(program, Context(CPU))
    assert bits_of(program) == {"table": 4, **{f"blocks.{i}": 8 for i in range(4)}}
    with pytest.raises(PassError, match=r"eight_bits names 'haed'.*no such layer"):
        QuantizeWeights(group=32, eight_bits=("haed",)).run(program, Context(CPU))
