"""The same on all hosts at once."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from configs.errors import UserError
from launch.hosts.call import Unreachable
from launch.hosts.host import Host

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of it on one host: a value, or what went wrong."""

    host: Host
    value: T | None = None
    mistake: UserError | None = None
    unreachable: Unreachable | None = None


def everywhere(hosts: Sequence[Host], act: Callable[[Host], T]) -> list[Outcome[T]]:
    """Returns what came of an act on each host, in their order, when all are through."""

    def one(host: Host) -> Outcome[T]:
        try:
            return Outcome(host, act(host))
        except UserError as error:
            return Outcome(host, mistake=error)
        except Unreachable as error:
            return Outcome(host, unreachable=error)

    with ThreadPoolExecutor(max_workers=max(1, len(hosts)), thread_name_prefix="hosts") as pool:
        return list(pool.map(one, hosts))


def values(outcomes: Sequence[Outcome[T]]) -> list[T]:
    """Returns the values.

    Raises:
      UserError: a host refused.
      Unreachable: one could not be reached.
    """
    for outcome in outcomes:
        if outcome.mistake is not None:
            raise outcome.mistake
    for outcome in outcomes:
        if outcome.unreachable is not None:
            raise outcome.unreachable
    return [outcome.value for outcome in outcomes]  # type: ignore[misc]
