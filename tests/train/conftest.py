"""What several tests of this room ask for."""

import io

import pytest
from rich.console import Console


@pytest.fixture
def console():
    """A console whose words a test reads with ``export_text``."""
    return Console(file=io.StringIO(), record=True, width=200, highlight=False, markup=False)
