"""What a run says of itself while it goes on: alive.json in its folder, for those who watch it.

Process 0 writes it from a thread of its own, every 10 s, and every 30 s where the folder is in an
object store; training itself never goes by it, and where it cannot be written, the run goes on.

``state`` is running, or how this session ended (finished, stopped, failed), then with ``signal`` or
``reason``; ``doing``, ``step`` of ``steps``, and ``still``, the seconds since the loop last gave a
sign; ``processes``, each with host and process id, and ``seconds`` since its last sign as process 0
heard it (a process that has given none has only its index); ``session``, ``beat`` (which counts the
writings), ``began``, ``written`` and ``every``, the seconds to the next; and ``earlier`` sessions
of the run, oldest first, as they ended: "lost" where none of its processes could say how.
"""

import contextlib
import datetime
import json
import secrets
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from configs.errors import UserError
from configs.files import read_if_there, write_text
from configs.folders import Folder, in_store
from train import heartbeat
from train.processes.abort import before_end

ALIVE, HOLDER = "alive.json", "running.json"  # the second: who has the folder (train/holding.py)
RUNNING, FINISHED, STOPPED, FAILED, LOST = "running", "finished", "stopped", "failed", "lost"
EVERY, EVERY_IN_STORE = 10.0, 30.0  # seconds
LEAVING = 5.0  # seconds that a run waits at its end for the last writing
EARLIER = 50  # sessions that are remembered

Signs = dict[int, dict[str, Any]]


class Alive:
    """Keeps alive.json up to date, from ``begin`` on, while it is entered."""

    def __init__(
        self,
        workdir: Folder,
        steps: int,
        count: int,
        signs: Callable[[], Signs],
        writes: bool = True,
    ):
        """Args: the run's folder; its steps; processes; where each is; whether this one writes."""
        self._workdir, self._steps, self._count, self._signs = workdir, steps, count, signs
        self._writes = writes
        self._every = EVERY_IN_STORE if in_store(workdir) else EVERY
        self._session, self._began, self._beat = secrets.token_hex(8), _now(), 0
        self._earlier: list[dict[str, Any]] = []
        self._end: dict[str, Any] = dict(state=RUNNING)
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._go_on, name="alive", daemon=True)

    def __enter__(self) -> "Alive":
        heartbeat.forget()
        return self

    def begin(self) -> None:
        """Begins to write: a start that is refused leaves what the run has said."""
        if self._writes:
            before_end(self._last)
            self._thread.start()

    def ends(self, finished: bool, signal: int | None = None) -> None:
        """Says how the run ends, where nothing is raised.

        Args:
          finished: whether it has taken all its steps.
          signal: that asked it to end.
        """
        self._end = dict(state=FINISHED) if finished else dict(state=STOPPED, signal=signal)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Writes how it ended, if the disk takes it soon."""
        if error is not None:
            # What other errors say may hold anything; process 0 shows it.
            said = str(error) if isinstance(error, UserError) else type(error).__name__
            self._end = dict(state=FAILED, reason=said[:1000])
        if self._thread.ident is not None:  # it has begun
            self._over.set()
            self._thread.join(LEAVING)
            if error is None:
                before_end(None)

    def _go_on(self) -> None:
        with contextlib.suppress(Exception):  # whatever is there instead
            self._earlier = _sessions(json.loads(read_if_there(self._workdir / ALIVE)))
        self._write()
        while not self._over.wait(self._every):
            self._write()
        self._write()

    def _write(self) -> None:
        # A full disk, a store that is away, a coordinator that has gone: none is worth a run.
        with self._lock, contextlib.suppress(Exception):
            self._beat += 1
            write_text(self._workdir / ALIVE, json.dumps(self._about()) + "\n")

    def _about(self) -> dict[str, Any]:
        doing, signs = heartbeat.doing(), self._signs()
        return dict(
            **self._end,
            doing=doing.what,
            step=doing.step,
            steps=self._steps,
            still=round(time.monotonic() - doing.since, 1),
            session=self._session,
            began=self._began,
            written=_now(),
            beat=self._beat,
            every=self._every,
            processes=[dict(index=i, **signs.get(i, {})) for i in range(self._count)],
            earlier=self._earlier,
        )

    def _last(self, sentence: str, status: int) -> None:
        """Writes how it ended where the process is about to be ended from a thread."""
        if self._end["state"] not in (FINISHED, STOPPED):  # it came too late to change that
            by_signal = dict(signal=status - 128) if status > 128 else {}
            state = STOPPED if by_signal else FAILED
            self._end = dict(state=state, reason=sentence[:1000], **by_signal)
        self._over.set()
        self._write()


def _sessions(before: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the sessions that a file knows, its own among them."""
    names = ("began", "written", "step", "state", "reason", "signal")
    own = {name: before[name] for name in names if name in before}
    own["state"] = LOST if own["state"] == RUNNING else own["state"]
    return [*before["earlier"], own][-EARLIER:]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
