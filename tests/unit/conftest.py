"""For unit tests: a relay that ends with its test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from relays import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A relay that is closed with the test."""
    made = Bench(tmp_path)
    yield made
    made.close()
