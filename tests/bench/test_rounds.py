"""What is made of measured seconds."""

import pytest

from bench import rounds


class Fake:
    """A contender that was measured already."""

    def __init__(self, *seconds):
        self.answers = [dict(seconds=s, peak_bytes=7, loss=1.5) for s in seconds]
        self.closed = False

    def close(self):
        self.closed = True


def test_the_fastest_of_ours_is_compared_with_the_fastest_of_the_others_round_by_round():
    sides = {
        "manyheads in one way": Fake(1.0, 2.0, 4.0),
        "manyheads in another": Fake(3.0, 3.0, 3.0),
        "slow": Fake(9.0, 9.0, 9.0),
        "quick": Fake(2.0, 3.0, 2.0),
    }
    ours, other, slow, quick = rounds.summary(sides)
    assert ours["ratio"] == dict(median=1.5, lowest=0.5, highest=2.0)
    assert (ours["seconds"], ours["lowest"], ours["highest"]) == (2.0, 1.0, 4.0)
    assert not any("ratio" in row for row in (other, slow, quick))
    assert quick["loss"] == 1.5
    assert all(side.closed for side in sides.values())


class Listed:
    """A contender that writes down when it runs."""

    def __init__(self, name, log):
        self.name, self.log, self.answers = name, log, []

    def run(self, repetitions):
        self.log.append((self.name, repetitions))
        self.answers.append(dict(seconds=1.0))


def test_contenders_take_turns_and_none_always_goes_first():
    log = []
    sides = {name: Listed(name, log) for name in "abc"}
    rounds.interleave(sides, 3, 5)
    order = "".join(name for name, _ in log)
    assert order == "abc" + "abc" + "bca" + "cab"
    assert {repetitions for _, repetitions in log} == {5}
    # The first round warms up and does not count.
    assert all(len(side.answers) == 3 for side in sides.values())


def test_a_contender_that_fails_says_why():
    with pytest.raises(RuntimeError, match="no_such_shape"):
        rounds.Contender("manyheads:Loading", shape="no_such_shape")
