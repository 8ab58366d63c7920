"""The batches that a run leaves out, and so which batch a step takes."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Numbers of batches in the endless order, from 0, that no step takes."""

    ranges: tuple[tuple[int, int], ...] = ()  # first and last of each, in order, none touching

    @classmethod
    def of(cls, ranges: Iterable[Iterable[int]]) -> "Skipped":
        """Returns those of ranges, which may overlap and come in any order."""
        joined: list[tuple[int, int]] = []
        for first, last in sorted((first, last) for first, last in ranges):
            if joined and first <= joined[-1][1] + 1:
                first, before = joined.pop()
                last = max(last, before)
            joined.append((first, last))
        return cls(tuple(joined))

    def __or__(self, other: "Skipped") -> "Skipped":
        """Returns the batches of both."""
        return Skipped.of((*self.ranges, *other.ranges))

    def batch(self, step: int) -> int:
        """Returns the batch that is taken after so many steps: the next that is not left out."""
        batch = step
        for first, last in self.ranges:
            if first > batch:
                break
            batch += last - first + 1
        return batch


NONE = Skipped()
