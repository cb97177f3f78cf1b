import pytest

from tests.threads import threads


@pytest.fixture(autouse=True)
def one_thread():
    """The programs are tiny: handing their work to other threads takes longer than doing it."""
    with threads(1):
        yield
