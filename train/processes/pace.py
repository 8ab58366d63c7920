"""How long a step takes on the host of each process, and which is the slowest."""

from train.processes.group import Processes

TOPIC = "pace"


class Pace:
    """The seconds that each host spends on a step, besides waiting for the devices.

    All devices wait for each other in every step, so the whole of it takes as long everywhere. What
    a host adds by itself, such as making its rows of a batch, tells the slow one.
    """

    def __init__(self, processes: Processes):
        """Args: of the run."""
        self._processes = processes
        self._waited = 0.0
        self._latest: dict[int, list[float]] = {}

    def waited(self, seconds: float) -> None:
        """Notes how long this process waited for its devices."""
        self._waited += seconds

    def of_hosts(self, seconds: float, steps: int) -> dict[str, float]:
        """Tells process 0 the pace of this one, and returns what it knows of all.

        Args:
          seconds: since the last call.
          steps: taken in them.

        Returns:
          "step_seconds/I" and "host_seconds/I" of process I, the second without the time that it
          waited for devices; nothing where a process is alone, or is not process 0.
        """
        host, self._waited = seconds - self._waited, 0.0
        if self._processes.count == 1:
            return {}
        self._processes.tell(TOPIC, [seconds / steps, host / steps])
        if not self._processes.first:
            return {}
        self._latest = self._processes.heard(TOPIC)
        figures: dict[str, float] = {}
        for index, (step, own) in sorted(self._latest.items()):
            figures |= {f"step_seconds/{index}": step, f"host_seconds/{index}": own}
        return figures

    def slowest(self) -> str:
        """Returns which host spends most on a step; empty where a process is alone."""
        if not self._latest:
            return ""
        index = max(self._latest, key=lambda i: self._latest[i][1])
        return f"slowest host: {self._processes.name(index)}, {self._latest[index][1]:.3f} s a step"
