"""Plugins that are installed for one test: a module, and the metadata of a package."""

import itertools
import sys
import textwrap

import pytest

HEAD = """
from dataclasses import dataclass
from fxopt.plugin import *
from fxopt.plugin import hookimpl
"""
PASS = """
@dataclass(frozen=True)
class {cls}(Pass):
    info = PassInfo(name="{name}", stage="simplify", fidelity=Exact())
    def run(self, program, context):
        with program.edit() as edit:
            pass
        return edit.result()
@hookimpl
def fxopt_passes():
    return [{cls}]
"""

_numbers = itertools.count()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Call it with a plugin's name and source: it is found through its entry point then."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, source, *, package=None, version="1.0", head=HEAD):
        module = f"{name}_plugin_{next(_numbers)}"
        package = package or f"dist-{name}"
        (tmp_path / f"{module}.py").write_text(head + textwrap.dedent(source))
        info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[fxopt]\n{name} = {module}\n")
        return module

    yield write
    for module in [name for name in sys.modules if "_plugin_" in name]:
        del sys.modules[module]


@pytest.fixture
def a_pass():
    """The source of a plugin with one pass that does nothing."""

    def source(name, cls="Nothing"):
        return PASS.format(name=name, cls=cls)

    return source
