"""Signatures, batches, notes, sources and errors of a whole capture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import CaptureError
from fxopt.frontend import another_size, capture_program, with_batch
from tests.frontend.support import assert_agrees, captured, functions, leaves, randn


class Nested(nn.Module):
    """Nested inputs and outputs, some of them None or constant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self,
        x: Tensor,
        pair: tuple[Tensor, Tensor | None],
        *,
        scale: float = 1.0,
        extra: Any = None,
    ) -> dict[str, Any]:
        y = self.linear(x) + pair[0] * scale
        if extra is not None:
            y = y + extra["a"]
        return {"y": (y, [x]), "nothing": None, "name": 3}


def test_nested_inputs_and_outputs() -> None:
    model, x, other = Nested(), randn(2, 4), randn(2, 4)
    program = captured(model, x, (other, None), extra={"a": randn(2, 4)}, scale=2.0)
    assert program.signature.batch
    assert next(node.name for node in program.inputs) == "x"
    inputs = ((randn(5, 4), (randn(5, 4), None)), {"scale": 2.0, "extra": {"a": randn(5, 4)}})
    assert_agrees(program, model, *inputs[0], **inputs[1])


def test_keyword_inputs_only() -> None:
    class Keyword(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - b

    program = captured(Keyword(), b=randn(2, 3), a=randn(2, 3))
    assert {node.name for node in program.inputs} == {"a", "b"}
    assert_agrees(program, Keyword(), a=randn(5, 3), b=randn(5, 3))  # in the other order


def test_huggingface_bert() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=50,
    )
    model = transformers.BertModel(config)
    ids = torch.randint(0, 50, (2, 7))
    program = captured(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert program.signature.batch
    assert "embeddings.word_embeddings" in leaves(program)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_batch_is_dynamic(size: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    program = captured(model, randn(size, 3, 8, 8))
    assert program.signature.batch
    assert not program.notes
    for other in (1, 2, 5):
        assert_agrees(program, model, randn(other, 3, 8, 8))


class FixedBatch(nn.Module):
    """Code that holds for one batch size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).reshape(3, 2, 2) + x.shape[0]


def test_a_fixed_batch_is_noted() -> None:
    program = captured(FixedBatch(), randn(3, 4))
    assert not program.signature.batch
    assert "the batch size is fixed" in program.notes[0]


def test_a_branch_on_the_batch_is_noticed() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] == 1 else x * 3

    model = Branch()
    program = captured(model, randn(1, 4))
    assert not program.signature.batch
    program = captured(model, randn(4, 4))
    assert not program.signature.batch


def test_a_limit_of_the_batch_is_noticed() -> None:
    class Limited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.rand(9, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.rows[: x.shape[0]]

    assert "no more than 9" in captured(Limited(), randn(2, 4)).notes[0]


@pytest.mark.parametrize("normed", [True, False])
def test_where_torch_takes_another_kernel_for_a_batch_norm_is_no_limit(normed):
    class Kernel(nn.Module):
        """Has the limit that torch has for batch norms on a GPU."""

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4) if normed else nn.Identity()

        def forward(self, x):
            torch._check(x.shape[0] <= 65535)
            return self.norm(x)

    program = captured(Kernel().eval(), randn(2, 4))
    assert program.signature.batch == normed


def test_inputs_without_a_batch() -> None:
    class Scalar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    program = captured(Scalar(), torch.tensor(2.0))
    assert "no input has a batch dimension" in program.notes[0]


def test_no_grad_blocks_are_inlined() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.body(x)
            return self.head(x)  # type: ignore[no-any-return]

    model = Frozen()
    program = captured(model, randn(2, 4))
    assert leaves(program) == {"body": "Linear", "head": "Linear"}
    program.call(randn(2, 4)).sum().backward()
    assert model.body.weight.grad is None
    assert model.head.weight.grad is not None


def test_every_node_knows_its_source() -> None:
    program = captured(FixedBatch(), randn(3, 4))
    calls = [node for node in program.nodes if node.op.startswith("call")]
    assert calls
    for node in calls:
        assert "test_capture.py" in node.meta["source"]
        assert "self.linear(x).reshape(3, 2, 2)" in node.meta["source"]


class Undecided(nn.Module):
    """Its path depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.linear(x).sum() > 0:
            return x
        return -x


def test_an_error_names_operation_and_line() -> None:
    with pytest.raises(CaptureError) as caught:
        capture_program(Undecided().double(), (randn(2, 4),), {})
    assert "aten.item" in str(caught.value)
    assert "test_capture.py" in str(caught.value)
    assert "if self.linear(x).sum() > 0:" in str(caught.value)


def test_a_model_that_fails_is_named() -> None:
    with pytest.raises(CaptureError, match="Linear fails on the inputs"):
        capture_program(nn.Linear(4, 4), (torch.randn(2, 5),), {})


def test_failing_capture_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError):
        capture_program(Undecided().double(), (randn(2, 4),), {})
    captured_text = capfd.readouterr()
    assert not captured_text.out
    assert not captured_text.err


def test_trying_another_batch_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    program = captured(Rows(), randn(2, 4))
    assert "batch size is fixed" in program.notes[0]
    assert not capfd.readouterr().err


class Rows(nn.Module):
    """Handles row by row, as many as there are in the example."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.linear(row[None]) for row in x])


def test_hooks_run_as_part_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    assert "aten.mul.Tensor" in functions(captured(model, randn(2, 4)))


def test_with_batch_gives_distinct_rows() -> None:
    for size in (0, 1, 2, 3):
        inputs = ((torch.randn(size, 3, 4), torch.zeros(5)), {"mask": torch.ones(size, 2)})
        (x, other), kwargs = with_batch(inputs, 4)
        assert (x.shape, other.shape, kwargs["mask"].shape) == ((4, 3, 4), (5,), (4, 2))
        assert not torch.equal(x[0], x[1])


def test_other_sizes_are_small_and_other() -> None:
    assert [another_size(size) for size in (0, 1, 2, 3, 4, 64)] == [1, 2, 3, 4, 3, 3]


def test_fast_path_is_left_as_it_was() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    captured(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), randn(2, 3, 8))
    assert torch.backends.mha.get_fastpath_enabled()
