"""Fixtures of unit tests only."""

from collections.abc import Iterator

import pytest

from tests.flaky_server import FlakyServer


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    """A server that answers as the test plans."""
    with FlakyServer() as server:
        yield server
