"""The calls of the compiled step that a run is cut into."""

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence


class Calls:
    """The steps of each call, by its number; none is listed, so a run may be of any length.

    A call ends at every multiple of ``steps_per_call`` and of each of ``everies``, and at the last
    step, whatever step the run goes on from.
    """

    def __init__(self, start: int, steps: int, steps_per_call: int, everies: Sequence[int] = ()):
        """Args: steps taken before, steps of the run, what divides the ends of calls (0: none)."""
        self.start, self.steps = start, steps
        divisors = [steps_per_call, *filter(None, everies)]
        # How many numbers have one of these divisors, by inclusion and exclusion.
        self._terms = [
            ((-1) ** (size + 1), math.lcm(*chosen))
            for size in range(1, len(divisors) + 1)
            for chosen in itertools.combinations(divisors, size)
        ]

    def __len__(self) -> int:
        return self._ends_until(self.steps - 1) + 1 if self.steps > self.start else 0

    def __getitem__(self, number: int) -> range:
        """Returns the steps of a call, numbered from 0."""
        if not 0 <= number < len(self):
            raise IndexError(f"call {number} of {len(self)}")
        return range(self._end(number - 1), self._end(number))

    def __iter__(self) -> Iterator[range]:
        return (self[number] for number in range(len(self)))

    def _ends_until(self, step: int) -> int:
        return sum(sign * (step // d - self.start // d) for sign, d in self._terms)

    def _end(self, number: int) -> int:
        steps = range(self.start, self.steps)
        return self.start + bisect.bisect_left(steps, number + 1, key=self._ends_until)
