"""Fixtures for programs as files."""

import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "program.safetensors"
