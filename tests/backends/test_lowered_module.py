"""The module that calls lowered code, with a backend that keeps a record of what it is asked."""

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch

from fxopt.backends import Backend, BackendInfo, Executable, Kernel, LoweredModule, Lowering
from fxopt.backends.cache import LIMIT, CodeCache
from fxopt.cost import find_target
from fxopt.errors import BackendError
from tests.building import image, small_cnn


@dataclass(frozen=True)
class Recording(Backend):
    """Runs a frozen copy of the program, as a real backend does."""

    info = BackendInfo(name="recording", targets=("cpu",))
    lowered: list[object] = field(default_factory=list)
    compiled: list[object] = field(default_factory=list)
    called: list[object] = field(default_factory=list)

    def lower(self, program, inputs, target):
        self.lowered.append(target.name)
        backend, frozen = self, copy.deepcopy(program.module)

        class Code(Executable):
            def __init__(self, shapes):
                self.shapes = shapes

            def __call__(self, *inputs):
                assert tuple(t.shape for t in inputs) == self.shapes
                backend.called.append(self.shapes)
                with torch.no_grad():
                    return frozen(*inputs)

            def kernels(self):
                return (Kernel("conv", "Convolution", "f32"), Kernel("fc", "MatMul", "int8"))

        class Recorded(Lowering):
            def compile(self, inputs):
                time.sleep(0.01)  # long enough for a second thread to come by
                backend.compiled.append(tuple(t.shape for t in inputs))
                return Code(backend.compiled[-1])

        return Recorded()

    __hash__ = object.__hash__


@pytest.fixture
def backend():
    return Recording()


@pytest.fixture
def program():
    return small_cnn()


@pytest.fixture
def module(program, backend):
    return LoweredModule(program, backend, find_target("cpu"))


def test_nothing_is_lowered_before_the_first_call(module, backend):
    assert not backend.lowered
    module(image())
    assert backend.lowered == ["cpu"]


def test_each_shape_is_compiled_once(module, program, backend):
    for batch in (2, 3, 2, 3, 2):
        torch.testing.assert_close(module(image(batch)), program(image(batch)))
    assert [shapes[0][0] for shapes in backend.compiled] == [2, 3]
    assert len(backend.lowered) == 1
    assert [shapes[0][0] for shapes in backend.called] == [2, 3, 2, 3, 2]


def test_another_dtype_is_compiled_too(module, backend):
    module.executable(image())
    module.executable(image().double())
    assert len(backend.compiled) == 2


def test_the_number_of_compiled_shapes_is_bounded(module, program, backend):
    for batch in range(1, LIMIT + 1):
        torch.testing.assert_close(module(image(batch)), program(image(batch)))
    rare = range(LIMIT + 1, LIMIT + 4)
    with pytest.warns(UserWarning, match="run as plain torch") as told:
        outputs = [module(image(batch)) for batch in rare]
    assert len(told) == 1
    for batch, output in zip(rare, outputs, strict=True):
        torch.testing.assert_close(output, program(image(batch)))
    assert len(module._compiled) == LIMIT
    assert len(backend.compiled) == LIMIT  # the last ones ran as the program stands


def test_a_shape_that_is_used_more_takes_the_place_of_one_that_is_used_less(module, backend):
    for batch in range(1, LIMIT + 1):
        module(image(batch))
    for _ in range(3):
        module(image(LIMIT + 1))
    assert [shapes[0][0] for shapes in backend.compiled] == list(range(1, LIMIT + 2))
    assert len(module._compiled) == LIMIT


def test_changing_shapes_do_not_compile_again_and_again(module, backend):
    for _ in range(20):
        for batch in range(1, 2 * LIMIT):
            module(image(batch))
    assert len(backend.compiled) <= 2 * LIMIT


def test_what_was_used_long_ago_makes_room(backend):
    cache = CodeCache()
    old = [((torch.Size([size]), torch.float32),) for size in range(LIMIT)]
    for key in old:
        cache.add(key, object())
        for _ in range(100):
            cache.find(key)
    new = ((torch.Size([99]), torch.float32),)
    for _ in range(3000):
        cache.find(new)
    assert cache.admits(new)


def test_threads_compile_once(module, program, backend):
    start = threading.Barrier(6)

    def call(batch):
        start.wait()
        return module(image(batch))

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(call, [2, 3] * 3))
    for batch, result in zip([2, 3] * 3, results, strict=True):
        torch.testing.assert_close(result, program(image(batch)))
    assert sorted(shapes[0][0] for shapes in backend.compiled) == [2, 3]
    assert len(backend.lowered) == 1


def test_training_runs_the_source_program(module, backend):
    module.train()
    (output,) = module(image())
    output.sum().backward()
    weight = dict(module.named_parameters())["fxopt_source.stem.weight"]
    assert weight.grad.abs().sum() > 0
    assert not backend.called


def test_gradients_of_inputs_come_from_the_source_program(module, backend):
    x = image().requires_grad_()
    (output,) = module(x)
    output.sum().backward()
    assert x.grad.abs().sum() > 0
    assert not backend.called
    with torch.no_grad():
        module(x)
    assert len(backend.called) == 1


def train_a_step(module):
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(image())[0].square().sum().backward()
    optimizer.step()
    module.eval()


def load_other_weights(module):
    state = {name: torch.ones_like(value) for name, value in module.state_dict().items()}
    module.load_state_dict(state)


@pytest.mark.parametrize("change", [train_a_step, load_other_weights])
def test_changed_weights_are_lowered_again(module, program, backend, change):
    (before,) = module(image())
    change(module)
    (after,) = module(image())
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, program(image())[0])
    assert len(backend.lowered) == 2


def test_weights_loaded_through_a_parent_are_lowered_again(module, backend):
    parent = torch.nn.Sequential(module)
    parent(image())
    load_other_weights(parent)
    parent(image())
    assert len(backend.lowered) == 2


def test_another_dtype_of_the_weights_is_lowered_again(module, backend):
    module(image())
    module.double()
    (output,) = module(image().double())
    assert output.dtype is torch.float64
    assert len(backend.lowered) == 2


def test_a_deep_copy_is_independent(module, program, backend):
    (expected,) = module(image())
    twin = copy.deepcopy(module)
    assert torch.equal(twin(image())[0], expected)
    assert len(backend.lowered) == 2
    load_other_weights(twin)
    assert torch.equal(module(image())[0], expected)
    assert not torch.equal(twin(image())[0], expected)
    assert copy.deepcopy(module.train()).training


def test_inputs_need_not_be_contiguous(module, program):
    strided = image().permute(0, 1, 3, 2)
    torch.testing.assert_close(module(strided), program(strided))
    channels_last = image().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module(channels_last), program(image()))


def test_precisions_are_those_of_the_last_code(module):
    assert not module.precisions()
    module(image())
    assert module.precisions() == {"f32": 1, "int8": 1}


def test_an_error_while_lowering_is_passed_on_and_tried_again(program):
    @dataclass(frozen=True)
    class Refusing(Backend):
        info = BackendInfo(name="refusing", targets=("cpu",))

        def lower(self, program, inputs, target):
            raise BackendError("no such operator")

    module = LoweredModule(program, Refusing(), find_target("cpu"))
    for _ in range(2):
        with pytest.raises(BackendError, match="no such operator"):
            module(image())


def test_it_names_its_backend(module):
    assert "backend=recording" in repr(module)
