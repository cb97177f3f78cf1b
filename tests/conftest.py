"""What all tests share."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what one test measures from the others, and from the user's cache."""
    folder = tmp_path / "fxopt_cache"
    monkeypatch.setenv("FXOPT_CACHE_DIR", str(folder))
    return folder
