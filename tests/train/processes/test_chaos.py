"""A run that is killed at random moments ends with the bits of one that was not."""

import pytest

from tests.train.processes import chaos


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, processes):
    said = chaos.survive(tmp_path, processes, times=3, seed=processes)
    assert any("was saved" in line for line in said), said
