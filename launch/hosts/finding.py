"""Something that is wrong on a host of a job."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is wrong, and what to do."""

    host: str
    sentence: str  # names the host and the remedy
    fatal: bool = True  # whether a run cannot start so
    passing: bool = False  # whether it may be over when all are started again
