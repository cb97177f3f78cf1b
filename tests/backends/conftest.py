"""What tests of backends share."""

import pytest

from tests.threads import threads


@pytest.fixture(autouse=True)
def two_threads():
    """Backends are lowered to as on a user's machine, whatever the suite is given."""
    with threads(2):
        yield
