"""One resource in the cloud: looked at, asked for, deleted."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

from launch.tpu_vm import failures, gcloud, replies
from launch.tpu_vm.failures import Failure, Kind
from launch.tpu_vm.gcloud import QUICK, SLOW, Request, Run
from launch.tpu_vm.place import Place
from launch.tpu_vm.replies import Node, Queued

_Found = TypeVar("_Found", Queued, Node)


@dataclasses.dataclass(frozen=True)
class Here:
    """What there is under a name, whoever it belongs to."""

    queued: Queued | None
    nodes: Mapping[str, Node]

    def all(self) -> list[Queued | Node]:
        """Returns whatever there is."""
        return [*([self.queued] if self.queued else []), *self.nodes.values()]


class Client:
    """Runs the commands of one place."""

    def __init__(self, place: Place, run: Run) -> None:
        self.place, self._run = place, run

    def look(self, slices: int) -> Here | Failure:
        """Returns what there is, or why that could not be told.

        Each is asked for by its name: only so does the API say that something is not there, where
        a list may lack what could not be reached.
        """
        found = self._describe(gcloud.describe(self.place), replies.queued)
        if isinstance(found, Failure):
            return found
        nodes = {}
        for name in self.place.nodes(slices):
            node = self._describe(gcloud.describe_node(self.place, name), replies.node)
            if isinstance(node, Failure):
                return node
            if node is not None:
                nodes[name] = node
        return Here(found, nodes)

    def create(self, request: Request, run: str) -> Failure | None:
        """Asks for what a request says, marked as of a run; returns why that failed."""
        return failures.of_reply(self._run(gcloud.create(self.place, request, run), SLOW))

    def delete(self) -> Failure | None:
        """Asks for the queued resource to be deleted, with its nodes; returns why that failed."""
        return failures.of_reply(self._run(gcloud.delete(self.place), QUICK))

    def delete_node(self, node: str) -> Failure | None:
        """Asks for a TPU VM to be deleted; returns why that failed."""
        return failures.of_reply(self._run(gcloud.delete_node(self.place, node), QUICK))

    def _describe(self, argv: list[str], read: Callable[[str], _Found]) -> _Found | Failure | None:
        reply = self._run(argv, QUICK)
        failure = failures.of_reply(reply)
        if failure is not None:
            return None if failure.kind is Kind.NOT_FOUND else failure
        try:
            return read(reply.out)
        except replies.Unreadable as error:
            return Failure(Kind.UNKNOWN, str(error))
