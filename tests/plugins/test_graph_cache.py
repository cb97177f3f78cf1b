"""Nets with packed weights in Inductor's cache of compiled graphs."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import codecache

from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_inductor import Inductor
from fxopt_inductor.graph_cache import packed_weights_cached
from fxopt_quantize import Quantize
from tests.building import image

CPU = find_target("cpu")
pytestmark = pytest.mark.skipif(Inductor().unavailable() is not None, reason="no toolchain")


def net(seed):
    torch.manual_seed(seed)
    layers = [torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 12, 1)]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(12 * 6 * 6, 10)).eval()


def compiled(backend, program):
    """Code for a program, and what the cache had to say."""
    counters["inductor"].clear()
    code = backend.lower(program, [image(2)], CPU).compile([image(2)])
    found = {key.removeprefix("fxgraph_cache_") for key in counters["inductor"] if "cache" in key}
    return code, found


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("cpp_wrapper", [False, True], ids=["python", "c++"])
def test_the_same_net_with_other_weights_is_found_and_runs_on_its_own(cpp_wrapper):
    backend, x = Inductor(cpp_wrapper=cpp_wrapper), image(2)
    first, second = (capture_program(net(seed), (x,), {}) for seed in (0, 1))
    assert (first(x)[0] - second(x)[0]).abs().max() > 0.1
    codes = []
    for program, expected in ((first, {"miss"}), (second, {"hit"}), (first, {"hit"})):
        code, found = compiled(backend, program)
        assert found == expected
        codes.append((code, program))
    for code, program in codes:  # side by side
        torch.testing.assert_close(code(x)[0], program(x)[0], rtol=1e-4, atol=1e-5)
        assert code.precisions() == {"f32": 3}


def test_a_quantized_net_is_found_unless_its_scales_differ():
    x, programs = image(2), []
    for seed in (0, 1):
        program = capture_program(net(seed), (x,), {}).clone()
        context = Context(CPU, calibration=Calibration([(x,)], program.signature))
        Quantize().run(program, context)
        programs.append(program)
    seen = []
    for program in (programs[0], programs[0], programs[1]):
        code, found = compiled(Inductor(), program)
        seen.append(found)
        assert float((code(x)[0] - program(x)[0]).norm() / program(x)[0].norm()) < 0.03
        assert code.precisions() == {"int8": 3}
    assert seen == [{"miss"}, {"hit"}, {"miss"}]


def test_small_weights_that_are_written_into_the_code_are_told_apart():
    class Scaled(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.layer = net(0)
            self.factor = torch.nn.Parameter(torch.tensor([factor]))

        def forward(self, x):
            return self.factor * self.layer(x)

    for factor in (2.0, 3.0):
        program = capture_program(Scaled(factor).eval(), (image(2),), {})
        code, _ = compiled(Inductor(), program)
        torch.testing.assert_close(code(image(2))[0], program(image(2))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["is_frozen_param", "FxGraphCache", "FxGraphCachePickler"])
def test_nothing_is_replaced_in_a_torch_with_another_cache(name, monkeypatch):
    owners = (codecache.FxGraphCachePickler, codecache.FxGraphCache)
    before = [dict(vars(owner)) for owner in owners]
    monkeypatch.delattr(codecache, name)
    with packed_weights_cached():
        assert [dict(vars(owner)) for owner in owners] == before


def test_nothing_stays_replaced():
    names = {
        codecache.FxGraphCachePickler: "_reduce_tensor",
        codecache.FxGraphCache: "_get_shape_env",
    }
    if hasattr(codecache, "CacheabilityValidator"):  # from torch 2.13 on
        names[codecache.CacheabilityValidator] = "check_tensor"
    before = {owner: vars(owner).get(name) for owner, name in names.items()}
    with packed_weights_cached():
        assert all(vars(owner)[name] is not before[owner] for owner, name in names.items())
    assert {owner: vars(owner).get(name) for owner, name in names.items()} == before
