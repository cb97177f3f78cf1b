import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def readme_command(number):
    script = ROOT / ".ci" / "readme_command.py"
    done = subprocess.run(
        [sys.executable, script, str(number)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_readme_opens_with_two_commands():
    opening = (ROOT / "README.md").read_text().partition("\n## ")[0]
    assert len(re.findall(r"^```bash$", opening, re.MULTILINE)) == 2
    assert readme_command(1).endswith("fxopt demo")
    assert readme_command(2).endswith("tox -p")


def test_ci_runs_the_second_one():
    script = (ROOT / ".ci" / "run").read_text()
    assert "readme_command.py 2" in script
    assert "set -euo pipefail" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_changelog_fragments_are_named_as_described():
    names = [path.name for path in (ROOT / "changelog.d").iterdir() if path.name != "README.md"]
    wrong = [n for n in names if not re.fullmatch(r"\d+\.(added|changed|fixed|removed)\.md", n)]
    assert not wrong


def test_import_is_light():
    code = (
        "import sys, fxopt, fxopt.cli\n"
        "print([m for m in ('torch', 'numpy', 'openvino', 'networkx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
