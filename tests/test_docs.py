"""README and docs: their code runs, their links lead somewhere, their rules are those in force."""

import re
import sys
import types
from pathlib import Path

import pytest

from fxopt.ir.verify import RULES
from fxopt.pipeline.checks import CHECKS
from fxopt.registry import default_registry

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]+\]\((?!https?:)([^)#]+)")
PATH = re.compile(r"`((?:fxopt|plugins|docs|tests|benchmarks|examples)/[\w./-]*)`")


def code_of(page):
    """The page's Python blocks as one source, at the line numbers that they have in the page."""
    text = page.read_text()
    lines = [""] * (text.count("\n") + 1)
    for block in CODE.finditer(text):
        first = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines)


@pytest.fixture
def module():
    """A module for code to live in: settings of passes are looked up by their module's name."""
    made = types.ModuleType("fxopt_docs_page")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def run_tests_in(module):
    """Runs the page's own tests, parametrized ones with each of their values."""
    for name, function in list(vars(module).items()):
        if not name.startswith("test_"):
            continue
        marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
        for value in marks[0].args[1] if marks else [None]:
            function(value) if marks else function()


@pytest.mark.parametrize(
    "page", [p for p in PAGES if CODE.search(p.read_text())], ids=lambda page: page.name
)
def test_code_runs(page, module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default_registry.cache_clear()
    exec(compile(code_of(page), str(page), "exec"), vars(module))
    run_tests_in(module)
    default_registry.cache_clear()  # a page may have registered a plugin


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    targets = [page.parent / link for link in LINK.findall(text)]
    targets += [ROOT / path for path in PATH.findall(text)]
    assert not [str(target) for target in targets if not target.exists()]


@pytest.mark.parametrize("check", [*RULES, *CHECKS], ids=lambda check: check.__name__)
def test_invariants_are_written_down(check):
    said = " ".join((ROOT / "docs" / "invariants.md").read_text().replace("`", "").split())
    rule = " ".join((check.__doc__ or "").partition("\n")[0].replace("`", "").split())
    assert rule.rstrip(".") in said
