"""Settings of all tests: how long an example takes depends on the machine, and is no failure."""

from collections.abc import Callable

import pytest
from hypothesis import settings

settings.register_profile("fedrec", deadline=None)
settings.load_profile("fedrec")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the tests marked soak in full, not a sample of them")


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often a test marked soak tries: `tries(SAMPLE, ALL)`; with a sample of 0 it is skipped but in the soak."""

    def choose(sample: int, everything: int) -> int:
        found = everything if request.config.getoption("--soak") else sample
        if not found:
            pytest.skip("for make soak alone")
        return found

    return choose
