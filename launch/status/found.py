"""What is found in the folder of a run, however damaged it is."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

from configs import files
from configs.errors import UserError, first_line
from configs.folders import Folder
from configs.parts import Version, part, versions
from launch.status import loose
from launch.status.rows import Rows
from launch.watchdog import STACKS
from model import manifest
from model.manifest import CONFIG, STATE, STEPS
from train import events, metrics, run_file
from train.alive import ALIVE, HOLDER

LARGEST = 1 << 24  # bytes of a file that is read as a whole
SIGNS = (CONFIG, metrics.NAME, ALIVE, HOLDER, run_file.NAME)  # by which a run's folder is known


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of a run, as its run last heard of it."""

    index: int
    about: dict[str, Any]  # see ``train.processes.whereabouts.here``
    host: str = ""
    stacks: int | None = None  # the descriptor at which it writes them at SIGUSR1
    seconds: float | None = None  # since its last sign, when the run wrote; None: it gave none

    @property
    def pid(self) -> int | None:
        """Returns its number on its host."""
        return loose.whole(self.about.get("pid"))

    def __str__(self) -> str:
        """Names it."""
        return f"process {self.index}" + (f" on {self.host}" if self.host else "")


@dataclasses.dataclass(frozen=True)
class Session:
    """What alive.json says: of one session, and of those before."""

    state: str
    doing: str
    step: int | None
    steps: int | None
    still: float  # seconds since the loop gave a sign, when it was written
    key: tuple[str, int]  # another one with each writing
    began: float | None
    written: float  # seconds since 1970, by the clock of process 0's host
    every: float
    processes: tuple[Process, ...]
    signal: int | None
    reason: str
    earlier: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, held: dict[str, Any]) -> "Session | None":
        """Returns what a document says; None where it is not one of these."""
        written, state = loose.moment(held.get("written")), loose.words(held.get("state"))
        if written is None or not state:
            return None
        return cls(
            state=state,
            doing=loose.words(held.get("doing"), 40),
            step=loose.whole(held.get("step")),
            steps=loose.whole(held.get("steps")),
            still=max(0.0, loose.number(held.get("still")) or 0.0),
            key=(loose.words(held.get("session")), loose.whole(held.get("beat")) or 0),
            began=loose.moment(held.get("began")),
            written=written,
            every=min(max(loose.number(held.get("every")) or 0.0, 1.0), 120.0),
            processes=tuple(
                _process(about, i) for i, about in enumerate(loose.items(held.get("processes")))
            ),
            signal=loose.whole(held.get("signal")),
            reason=loose.words(held.get("reason")),
            earlier=tuple(loose.items(held.get("earlier"))),
        )


def _process(about: dict[str, Any], index: int) -> Process:
    seconds = loose.number(about.get("seconds"))
    return Process(
        index=index,
        about=about,
        host=loose.words(about.get("host"), 80),
        stacks=loose.whole(about.get("stacks")),
        seconds=None if seconds is None else max(0.0, seconds),
    )


@dataclasses.dataclass(frozen=True)
class Saved:
    """The newest whole step."""

    step: int
    time: float | None  # when it was saved, by the clock of process 0's host


@dataclasses.dataclass
class Found:
    """What the files of one run say; what is not known is None or empty."""

    is_begun: bool = False  # there is anything at all
    session: Session | None = None
    holder: Process | None = None  # who has the folder
    held_since: float | None = None
    steps: int | None = None  # that the config asks for
    step_tokens: int | None = None
    step: int | None = None  # of the last row
    loss: float | None = None
    held_out: float | None = None
    tokens_per_second: float | None = None
    host_seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    saved: Saved | None = None
    accidents: dict[str, int] = dataclasses.field(default_factory=dict)  # by what was done
    last_accident: str = ""
    stacks: str = ""  # the newest folder with the stacks of processes that hung
    troubles: list[str] = dataclasses.field(default_factory=list)


class RunFiles:
    """The files of one run, looked at again and again."""

    def __init__(self, workdir: Folder):
        """Args: the run's folder."""
        self.workdir = workdir
        self._kept: dict[str, tuple[Version, bytes]] = {}
        self._rows = Rows(workdir / metrics.NAME)
        self._saved: Saved | None = None

    def look(self) -> Found:
        """Returns what is there now; what cannot be read is a trouble of this run alone."""
        found = Found()
        there: dict[str, Version] = {}

        def list_files() -> None:
            there.update(versions(self.workdir))

        def list_stacks() -> None:
            folders = [name for name in files.names(self.workdir / STACKS) if name[:1].isdigit()]
            if folders:
                found.stacks = str(self.workdir / STACKS / max(folders))

        parts: list[Callable[[], None]] = [
            list_files,
            lambda: self._session(found, there),
            lambda: self._holder(found, there),
            lambda: self._config(found, there),
            lambda: self._metrics(found, there),
            lambda: self._steps(found),
            lambda: self._events(found, there),
            list_stacks,
        ]
        for look in parts:
            try:
                look()
            except UserError as error:
                found.troubles.append(loose.words(str(error)))
            except Exception as error:  # a damaged file may lead anywhere, but not to the others
                said = f"{type(error).__name__}: {first_line(error)}"
                found.troubles.append(loose.words(f"{self.workdir} is not understood ({said})"))
        found.is_begun = bool(found.saved or found.troubles or set(SIGNS) & set(there))
        return found

    def _data(self, name: str, there: dict[str, Version]) -> bytes | None:
        """Returns what a small file holds, which is read again only when it was written."""
        version = there.get(name)
        if version is None:
            self._kept.pop(name, None)
            return None
        if name not in self._kept or self._kept[name][0] != version:
            start = max(0, version.size - LARGEST)
            self._kept[name] = version, part(self.workdir / name, start, version.size)
        return self._kept[name][1]

    def _document(self, name: str, there: dict[str, Version], found: Found) -> dict[str, Any]:
        data = self._data(name, there)
        held = None if data is None else loose.document(data)
        if data is not None and held is None:
            found.troubles.append(f"{name} is damaged")
        return held or {}

    def _session(self, found: Found, there: dict[str, Version]) -> None:
        if held := self._document(ALIVE, there, found):
            found.session = Session.of(held)
            if found.session is None:
                found.troubles.append(f"{ALIVE} is damaged")

    def _holder(self, found: Found, there: dict[str, Version]) -> None:
        if held := self._document(HOLDER, there, found):
            found.holder = _process(held, 0)
            found.held_since = loose.moment(held.get("since"))

    def _config(self, found: Found, there: dict[str, Version]) -> None:
        held = self._document(CONFIG, there, found)
        found.steps = loose.whole(held.get("steps"))
        batch, length = loose.whole(held.get("batch_size")), loose.whole(held.get("length"))
        found.step_tokens = batch * length if batch and length else None

    def _metrics(self, found: Found, there: dict[str, Version]) -> None:
        rows = self._rows
        rows.look(there.get(metrics.NAME))
        found.step, found.loss, found.held_out = rows.step(), rows.loss(), rows.held_out
        found.tokens_per_second, found.host_seconds = rows.tokens_per_second(), rows.host_seconds()

    def _steps(self, found: Found) -> None:
        for step in reversed(manifest.steps(self.workdir)):
            if self._saved is None or self._saved.step != step:
                path = self.workdir / STEPS / str(step)
                held = manifest.whole(path)  # its sizes; to read it all is for other commands
                if held is None or STATE not in held.files:
                    continue
                self._saved = Saved(step, loose.moment(loose.table(held.made).get("time")))
            found.saved = self._saved
            return

    def _events(self, found: Found, there: dict[str, Version]) -> None:
        data = self._data(events.NAME, there)
        lines = [loose.document(line) for line in (data or b"").splitlines() if line.strip()]
        known = [event for event in lines if event is not None]
        actions = [loose.words(event.get("action"), 20) or "unknown" for event in known]
        found.accidents = dict(collections.Counter(actions))
        if known:
            step, kind = loose.whole(known[-1].get("step")), loose.words(known[-1].get("kind"), 40)
            found.last_accident = f"{kind or 'accident'} of step {'?' if step is None else step}"
        if len(known) < len(lines):
            found.troubles.append(f"{events.NAME} is damaged")
