import pytest

from fxopt import __version__
from fxopt.registry import default_registry


def test_version(fxopt):
    result = fxopt("--version")
    assert result.exit_code == 0
    assert f"fxopt {__version__}, torch 2." in result.stdout


def test_help_names_every_command(fxopt):
    result = fxopt("--help")
    for command in ("optimize", "plan", "bisect", "passes", "plugins", "demo"):
        assert command in result.stdout


def test_passes_lists_every_pass_with_its_declaration(fxopt):
    lines = fxopt("passes").stdout.splitlines()
    assert lines[0].split()[:4] == ["pass", "stage", "fidelity", "plugin"]
    rows = {line.split()[0]: line for line in lines[1:] if not line.startswith(" ")}
    assert set(rows) == set(default_registry().passes)
    assert rows["cleanup"].split()[1:4] == ["prepare", "exact", "cleanup"]
    assert "needs calibration data" in " ".join(lines)


def test_plugins_lists_what_is_found(fxopt):
    result = fxopt("plugins")
    rows = {line.split()[0] for line in result.stdout.splitlines() if line.strip()}
    assert {plugin.name for plugin in default_registry().plugins} <= rows


@pytest.mark.parametrize("command", ["passes", "plugins"])
def test_narrow_terminals_lose_nothing(fxopt, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    text = fxopt(command).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "cleanup" in text
