"""What is shipped: the wheel that pip builds from the sources."""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("fxopt-*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_plugins_lie_beside_the_package(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"fxopt", *PLUGINS}


def test_every_source_file_is_shipped(wheel):
    shipped = set(wheel.namelist())
    for base in (ROOT, ROOT / "plugins"):
        folders = ["fxopt"] if base == ROOT else PLUGINS
        for path in (file for folder in folders for file in (base / folder).rglob("*.py")):
            assert path.relative_to(base).as_posix() in shipped
    assert "fxopt/py.typed" in shipped


def test_entry_points_name_what_is_shipped(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    points = configparser.ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert sorted(points["fxopt"].values()) == PLUGINS
    command, _, _ = points["console_scripts"]["fxopt"].partition(":")
    assert f"{command.replace('.', '/')}/__init__.py" in wheel.namelist()


def test_licence_and_metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    metadata = wheel.read(name).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
