"""A thread of each process that notices when another has failed or is gone, and says which."""

import contextlib
import json
import socket
import threading
import time
from typing import Any

from train import heartbeat
from train.processes.abort import end, on_abort
from train.processes.whereabouts import here

EVERY = 2.0  # seconds between two signs of life
SILENCE = 40.0  # seconds without one, after which a process is gone
GRACE = 5.0  # seconds in which the process may say by itself what it fails of
LINGER = 10.0  # seconds that a failed process 0 stays for the others to read why
LEAVING = 1.0  # seconds that they may take to end after they have
LOST = 75  # exit status where another process was lost: sysexits' "try again"

RUNS, STUMBLED, FAILED, ENDED = "runs", "stumbled", "failed", "ended"
_SIGNS = "manyheads/signs"


class Watch(threading.Thread):
    """Gives signs of life, and reads those of the others."""

    def __init__(self, client: Any, index: int, count: int, coordinator: str):
        """Args: JAX' client of the coordinator; this process, of how many; the coordinator."""
        super().__init__(name="watch", daemon=True)
        self._client, self._index, self._count = client, index, count
        self._coordinator = coordinator
        self._where = here() | dict(stacks=heartbeat.stacks())
        self._state, self._sentence, self._status, self._signs = RUNS, "", 0, 0
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}  # last sign, when it was new
        self._began = self._reached = time.monotonic()  # when the coordinator last answered
        self._over = threading.Event()
        self._verdict: tuple[str, int] | None = None
        self._lock = threading.Lock()
        on_abort(self._last_words)

    def start(self) -> None:
        """Starts to talk, and to judge what is heard."""
        # By itself: a coordinator whose host is gone keeps a call waiting for minutes.
        threading.Thread(target=self._talk, name="signs", daemon=True).start()
        super().start()

    def run(self) -> None:
        """Goes on until ``stop``; ends the process when another has failed or is gone."""
        while not self._over.wait(EVERY):
            self._verdict = self._verdict or self._judge()
            if self._verdict is not None:
                by_signal = self._verdict[1] > 128
                if by_signal:  # no sentence of its own comes
                    self.say(ENDED)
                    if self._index == 0:
                        self.wait_for_others(FAILED, ENDED)
                if not self._over.wait(0 if by_signal else GRACE):
                    end(*self._verdict)
                return

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()

    def say(self, state: str, sentence: str = "", status: int = 2) -> None:
        """Tells the others how this process is, and of what and with which status it ends."""
        self._state, self._sentence, self._status = state, sentence, status
        self._exchange()

    def wait_for_others(self, *states: str) -> None:
        """Returns when all are in one of some states and have had time to end, or do not come."""
        until = time.monotonic() + LINGER
        while time.monotonic() < until and not self.others(*states):
            time.sleep(0.2)
        time.sleep(LEAVING)

    def others(self, *states: str) -> bool:
        """Tells whether all other processes are in one of some states."""
        self._exchange()
        seen = list(self._seen.items())
        found = [sign["state"] for i, (sign, _) in seen if i != self._index]
        return len(found) == self._count - 1 and all(state in states for state in found)

    def verdict(self) -> tuple[str, int] | None:
        """Waits for what made another process fail; None where all others stumble like this one.

        Returns:
          A sentence and the exit status.
        """
        until = time.monotonic() + SILENCE + 5 * EVERY
        while self._verdict is None and time.monotonic() < until:
            if self.others(STUMBLED, ENDED):
                return None
            time.sleep(EVERY / 4)
        return self._verdict

    def called(self, index: int) -> str:
        """Returns how a process is called in a sentence."""
        if index not in self._seen:
            self._exchange()
        sign = self._seen.get(index)
        return f"process {index}" + (f" on {sign[0]['where']['host']}" if sign else "")

    def signs(self) -> dict[int, dict[str, Any]]:
        """Returns where each process is that has given a sign, and how old in seconds it is."""
        now, seen = time.monotonic(), list(self._seen.items())
        return {i: sign["where"] | dict(seconds=round(now - when, 1)) for i, (sign, when) in seen}

    def _talk(self) -> None:
        while not self._over.wait(EVERY):
            self._exchange()

    def _exchange(self) -> None:
        with self._lock, contextlib.suppress(Exception):  # jaxlib's, where the coordinator is gone
            self._signs += 1
            mine = dict(
                sign=self._signs,
                where=self._where,
                state=self._state,
                sentence=self._sentence,
                status=self._status,
            )
            self._client.key_value_set(f"{_SIGNS}/{self._index}", json.dumps(mine), True)
            now = time.monotonic()
            for key, value in self._client.key_value_dir_get(_SIGNS):
                index, sign = int(key.rpartition("/")[2]), json.loads(value)
                if index not in self._seen or self._seen[index][0] != sign:
                    self._seen[index] = (sign, now)
            self._reached = now

    def _judge(self) -> tuple[str, int] | None:
        """Returns the sentence and status that this process has to end with, or None."""
        now = time.monotonic()
        if now - self._reached > SILENCE:
            return self._lost(0)
        none = dict(state=RUNS), self._began  # who has never given a sign
        others = {i: self._seen.get(i, none) for i in range(self._count) if i != self._index}
        for index, (sign, _) in others.items():
            if sign["state"] == FAILED:
                return f"{self.called(index)} ended the run: {sign['sentence']}", sign["status"]
        for index, (sign, when) in others.items():
            if sign["state"] in (RUNS, STUMBLED) and now - when > SILENCE:
                return self._lost(index)
        return None

    def _lost(self, index: int) -> tuple[str, int]:
        at = f" (the coordinator, {self._coordinator})" if index == 0 else ""
        return (
            f"{self.called(index)}{at} was killed or cannot be reached any more; what was saved "
            "before is whole: start all processes again.",
            LOST,
        )

    def _last_words(self) -> tuple[str, int]:
        """What to say when jaxlib aborts: it does so when the coordinator does not answer."""
        if self._verdict is not None:
            return self._verdict
        if self._state == FAILED:
            return self._sentence, self._status
        host, _, port = self._coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            return self._lost(0)
        return "jaxlib aborted this process; its own message is above: start again.", 1
