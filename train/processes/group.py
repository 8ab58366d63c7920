"""The processes of a run: what one of them decides for all, and what all must have done well."""

import json
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import jax
from jax._src import distributed  # as multihost_utils and Orbax do: the store has no public name

from configs.errors import UserError, first_line
from train import heartbeat
from train.processes.abort import end
from train.processes.early_signals import EarlySignals
from train.processes.environment import Place
from train.processes.stopping import SharedStop, Stop
from train.processes.watch import ENDED, FAILED, RUNS, STUMBLED, Watch
from train.processes.whereabouts import here

T = TypeVar("T")

_LONG = 24 * 3600 * 1000  # milliseconds; who is gone ends the others, so none waits that long


class Processes:
    """One process, which is alone and pays for nothing."""

    index, count = 0, 1

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends what the processes have in common."""

    @property
    def first(self) -> bool:
        """Tells whether this is the process that writes and shows."""
        return self.index == 0

    def told(self, decide: Callable[[], T]) -> T:
        """Returns what process 0 decides: its own value, where it is JSON's.

        Raises:
          UserError: process 0 raised it.
        """
        return decide()

    def together(self, act: Callable[[], T]) -> T:
        """Returns this process' own value, once all processes have theirs.

        Raises:
          UserError: one of them raised it.
        """
        return act()

    def shared(self, act: Callable[[], T]) -> list[T]:
        """Returns the value of each process, JSON's, once all have theirs.

        Raises:
          UserError: one of them raised it.
        """
        return [act()]

    def exchange(self, topic: str, value: Any) -> list[Any]:
        """Returns the value of each process, JSON's; for a thread, with a topic of its own."""
        return [value]

    def tell(self, topic: str, value: Any) -> None:
        """Tells process 0 the latest value of a topic, without waiting."""

    def heard(self, topic: str) -> dict[int, Any]:
        """Returns the latest value of each process that told one."""
        return {}

    def name(self, index: int) -> str:
        """Returns how a process is called in a sentence."""
        return f"process {index}"

    def signs(self) -> dict[int, dict[str, Any]]:
        """Returns where each process is that is known, and the age of its last sign in seconds.

        ``host``, ``pid`` and what else ``whereabouts.here`` says, ``stacks`` (the descriptor at
        which it writes them, where it listens to SIGUSR1) and ``seconds``.
        """
        return {0: here() | dict(stacks=heartbeat.stacks(), seconds=0.0)}

    def stop(self) -> Stop:
        """Returns what notices that somebody asked the run to end."""
        return Stop()


class Several(Processes):
    """A process among several, which JAX has joined."""

    def __init__(self, place: Place):
        """Args: where it stands."""
        self.index, self.count = place.index, place.count
        self._client: Any = distributed.global_state.client
        self._turn = 0
        self._watch = Watch(self._client, self.index, self.count, place.coordinator)
        self._watch.say(RUNS)
        self._watch.start()
        self._early = EarlySignals(self._watch, self.first)
        self._early.start()

    def told(self, decide: Callable[[], T]) -> T:
        """Returns what process 0 decides; the others wait for it."""
        key = self._key()
        if self.index:
            answer = json.loads(self._client.blocking_key_value_get(key, _LONG))
            if "error" in answer:
                raise UserError(answer["error"])
            return answer["value"]
        try:
            value = decide()
        except UserError as error:
            self._client.key_value_set(key, json.dumps(dict(error=str(error))))
            raise
        self._client.key_value_set(key, json.dumps(dict(value=value)))
        return value

    def together(self, act: Callable[[], T]) -> T:
        """Returns this process' value, when all have one; the first mistake is everyone's."""
        key, mistake = self._key(), None
        try:
            value = act()
        except UserError as error:
            mistake = error
        self._client.key_value_set(f"{key}/{self.index}", str(mistake or ""))
        self._client.wait_at_barrier(key, _LONG)
        if mistake is not None:
            raise mistake
        for name, said in sorted(self._client.key_value_dir_get(key)):
            if said:
                raise UserError(f"{self.name(int(name.rpartition('/')[2]))}: {said}")
        return value

    def shared(self, act: Callable[[], T]) -> list[T]:
        """Returns the value of each process, when all have one."""
        value = self.together(act)
        return self.exchange(f"turn/{self._turn}", value)

    def exchange(self, topic: str, value: Any) -> list[Any]:
        """Returns the value of each process, when all have come to the topic."""
        key = f"manyheads/exchange/{topic}"
        self._client.key_value_set(f"{key}/{self.index}", json.dumps(value))
        self._client.wait_at_barrier(key, _LONG)
        found = {int(k.rpartition("/")[2]): v for k, v in self._client.key_value_dir_get(key)}
        return [json.loads(found[index]) for index in range(self.count)]

    def tell(self, topic: str, value: Any) -> None:
        """Tells process 0 the latest value of a topic."""
        self._client.key_value_set(f"manyheads/{topic}/{self.index}", json.dumps(value), True)

    def heard(self, topic: str) -> dict[int, Any]:
        """Returns the latest value of each process."""
        found = self._client.key_value_dir_get(f"manyheads/{topic}")
        return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}

    def name(self, index: int) -> str:
        """Returns a process with its host."""
        return self._watch.called(index)

    def signs(self) -> dict[int, dict[str, Any]]:
        """Returns where each process is, as the coordinator's store says."""
        return self._watch.signs()

    def stop(self) -> Stop:
        """Returns what all processes ask at the same points, and which answers all the same."""
        return SharedStop(self._early)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for the others; after an error, tells them why and ends without them."""
        if error is None:
            self._client.wait_at_barrier(self._key(), _LONG)
            self._early.close()
            self._watch.say(ENDED)
            self._watch.stop()
            jax.distributed.shutdown()
            return
        self._early.close()
        if not isinstance(error, UserError):
            # Where another process has gone, a collective fails here first.
            self._watch.say(STUMBLED)
            if (verdict := self._watch.verdict()) is not None:
                end(*verdict)
        said = str(error) if isinstance(error, UserError) else f"{kind}: {first_line(error)}"
        status = 2 if isinstance(error, UserError) else 1
        self._watch.stop()
        self._watch.say(FAILED, said, status)
        if self.first:  # with whom the coordinator goes, and what it has to tell
            self._watch.wait_for_others(FAILED, ENDED)
        # Before threads are joined, of which Orbax' may wait for other processes for minutes; there
        # is no public name for that moment.
        threading._register_atexit(_end_without_others, status)  # type: ignore[attr-defined]

    def _key(self) -> str:
        """Returns a name that the next exchange has in all processes."""
        self._turn += 1
        return f"manyheads/turn/{self._turn}"


def _end_without_others(status: int) -> None:
    """Ends the process before JAX waits for the others, who will not come."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
