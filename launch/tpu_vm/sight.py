"""What there is of a run's own in the cloud, as last seen, and for how long TPUs were held."""

import datetime
import math
import shlex
from collections.abc import Callable

from configs.errors import UserError
from launch.tpu_vm import adoption, gcloud, reconciler, replies
from launch.tpu_vm.client import Client, Here
from launch.tpu_vm.failures import Failure, Kind
from launch.tpu_vm.reconciler import Observed
from launch.tpu_vm.record import Record, Shelf
from launch.tpu_vm.replies import Node, Queued
from launch.tpu_vm.signals import Clock

_WRITTEN = 300.0  # seconds between records of how long TPUs were held


class Sight:
    """Looks, and tells what has changed.

    Attributes:
      names: of the nodes that there should be.
      last: what was seen last.
      fresh: what was seen just now; None where the cloud could not be asked.
      blind: looks in a row that showed nothing.
      denied: whether Google Cloud does not let us, as of late.
      forgiving: whether a record that cannot be written is passed over.
    """

    def __init__(
        self,
        client: Client,
        shelf: Shelf,
        record: Record,
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        """Args: as they are named; ``say`` shows a line."""
        self._client, self._shelf, self._record = client, shelf, record
        self._clock, self._say = clock, say
        self.names = client.place.nodes(record.slices)
        self.last: Observed | None = None
        self.fresh: Observed | None = None
        self.blind = 0
        self.denied = self.forgiving = False
        self._written = -math.inf
        self._shown = ""

    def look(self) -> None:
        """Looks at what there is."""
        here = self._client.look(self._record.slices)
        if isinstance(here, Failure):
            self.denied = here.kind is Kind.DENIED
            self.show(here.sentence)
            self._account(None)
            self.fresh, self.blind = None, self.blind + 1
        else:
            self.see(here)

    def see(self, here: Here) -> None:
        """Takes in what there is."""
        cloud = self._ours(here)
        if cloud is not None:
            self.denied, self.blind, self.last = False, 0, cloud
            self.show(adoption.states(here))
        self._account(cloud)
        self.fresh = cloud

    def _ours(self, here: Here) -> Observed | None:
        """Returns what is ours of what is there; None where it is seen as it was before."""
        record, queued = self._record, here.queued
        settled = (record.asked or 0.0) + reconciler.SETTLES <= self._clock.now()
        if not settled and any(each.created in record.gone for each in here.all()):
            return None
        self._adopt_kin(here, settled)
        foreign = [each.name for each in here.all() if not record.owns(each)]
        taken = ""
        if foreign:
            taken = (
                f"{foreign[0]} is there, and of somebody else; choose another --name, or delete it"
            )
        nodes = {name: node for name, node in here.nodes.items() if record.owns(node)}
        return Observed(queued if queued and record.owns(queued) else None, nodes, taken)

    def _adopt_kin(self, here: Here, settled: bool) -> None:
        """Takes over what belongs to what was taken over, and was not to be seen with it."""
        record, queued = self._record, here.queued
        if queued is None:
            return
        kin = [node for node in here.nodes.values() if node.queued == queued.name]
        found: list[Queued | Node] = []
        if queued.created in record.adopted and queued.state != "DELETING":
            found += [node for node in kin if not record.owns(node)]
        elif not settled and any(node.created in record.adopted for node in kin):
            found += [queued]
        if found:
            record.adopted += [each.created for each in found]
            self.remember()

    def _account(self, cloud: Observed | None) -> None:
        """Counts the time for which TPUs are held, rather too much than too little."""
        record, now = self._record, self._clock.now()
        held = record.looked is not None if cloud is None else reconciler.holds(cloud)
        if record.looked is not None:
            record.held += max(0.0, now - record.looked)
        elif held and cloud is not None:
            made = min((replies.seconds(n.created) for n in cloud.nodes.values()), default=now)
            since = max(
                made if made == made else now, now if record.asked is None else record.asked
            )
            record.held += max(0.0, now - since)
        changed = held != (record.looked is not None)
        record.looked = now if held else None
        if changed or (held and now >= self._written + _WRITTEN):
            self.remember()
            self._written = now

    def left(self) -> str:
        """Returns what may be left and the commands that delete it; ``""`` where nothing is."""
        place, cloud = self._client.place, self.last
        commands = []
        record = self._record
        maybe = record.asked is not None and cloud is None
        unsure = record.asked is not None and record.unsure
        if maybe or unsure or (cloud is not None and cloud.queued is not None):
            commands.append(gcloud.delete(place))
        elif cloud is not None:
            commands += [gcloud.delete_node(place, name) for name in cloud.nodes]
        elif record.adopted:
            commands += [gcloud.delete(place), *(gcloud.delete_node(place, n) for n in self.names)]
        if not commands:
            return ""
        lines = " ; ".join(shlex.join(argv) for argv in commands)
        return f"{place.name} in {place.zone} may be left; delete it with: {lines}"

    def remember(self) -> None:
        """Writes the record; a disk that is full does not keep anything from being deleted."""
        try:
            self._shelf.write(self._record)
        except UserError as error:
            if not self.forgiving:
                raise
            self.show(str(error))

    def show(self, text: str) -> None:
        """Tells what has changed."""
        if text != self._shown:
            self._shown = text
            self.tell(text)

    def tell(self, text: str) -> None:
        """Tells a line."""
        at = datetime.datetime.fromtimestamp(self._clock.now())
        self._say(f"{at:%H:%M:%S} {self._client.place.name} {text}")
