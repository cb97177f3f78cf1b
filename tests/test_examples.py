import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, capsys):
    """Each example asserts what it shows; here it also has to print a report."""
    runpy.run_path(str(path), run_name="__main__")
    assert "  recipe " in capsys.readouterr().out


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} >= {"quickstart", "int8", "own_pass"}
