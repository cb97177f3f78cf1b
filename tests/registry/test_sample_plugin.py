"""A third party's plugin, really installed: it is found, and it does its work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests" / "sample_plugin"
LONGEST = 17  # lines of code that the design allows it

PROGRAM = """
import json
import torch
from fxopt.cost import find_target
from fxopt.passes import Context
from fxopt.registry import default_registry
from tests.building import Builder, aten

registry = default_registry()
(plugin,) = [p for p in registry.plugins if p.name == "relu6"]
b = Builder()
x = b.input("x", 2, 4)
six = b.call(aten.clamp.default, b.call(aten.mul.Tensor, x, 9), 0, 6)
program = b.program(b.call(aten.clamp.default, six, 0, 5))
inputs = torch.randn(8, 4)
before = program.call(inputs)
(relu6,) = registry.parse("relu6{limit=6.0}")
result = relu6.run(program, Context(find_target("cpu")))
program.verify()
print(json.dumps({
    "owner": registry.owner("pass", "relu6"),
    "distribution": plugin.distribution,
    "problems": [str(problem) for problem in registry.problems],
    "rewrites": result.rewrites,
    "relu6": sum(1 for _ in program.find(torch.nn.ReLU6)),
    "clamps": sum(1 for _ in program.find(aten.clamp.default)),
    "equal": torch.equal(program.call(inputs), before),
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that pip installed the sample into."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--target", str(folder), str(SAMPLE)], check=True)
    return folder


def test_it_is_found_and_rewrites(site):
    path = os.pathsep.join([str(site), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        cwd=site,
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["owner"] == "plugin relu6 (fxopt-relu6 1.0)"
    assert seen["distribution"] == "fxopt-relu6"
    assert seen["problems"] == []
    assert seen["rewrites"][0].startswith("clamp_default -> ReLU6")
    assert (seen["relu6"], seen["clamps"]) == (1, 1)
    assert seen["equal"]


def test_it_is_as_short_as_the_design_promises():
    source = (SAMPLE / "fxopt_relu6" / "__init__.py").read_text()
    code = [line for line in source.splitlines() if line.strip()]
    assert len(code) <= LONGEST
    assert source.count("fxopt.") == 1  # the public face alone
