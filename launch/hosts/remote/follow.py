"""Passes on what an attempt of a job says on this host, and how it stands, until it has ended."""

from __future__ import annotations

import signal
import time
from typing import Any

from launch.hosts.remote import jobs, places, wire

LOOKING = 0.3  # seconds between two looks
BEAT = 5.0  # seconds after which something is said in any case
GONE = 128 + signal.SIGKILL  # exit status of what a host has lost with its disk
_PIECE = 1 << 16  # bytes of a log that are passed on at once


def act(request: dict[str, Any]) -> dict[str, Any]:
    """Follows an attempt.

    Args:
      request: ``root``, ``name``, ``attempt``: when it began; ``offset``: bytes of its log that
        are known.

    Returns:
      The last state.
    """
    wire.end_with_launcher()
    folder = places.job_folder(request["root"], request["name"])
    path = places.log_path(folder, request["attempt"])
    offset, said, beat = request["offset"], {}, time.monotonic()  # type: int, dict[str, Any], float
    while True:
        state = jobs.current(folder)  # before the log: who has ended writes no more
        try:
            with open(path, "rb") as log:
                log.seek(offset)
                while piece := log.read(_PIECE):
                    offset += len(piece)
                    wire.send_bytes(piece)
                    beat = time.monotonic()
        except FileNotFoundError:
            pass
        attempt = state.get("attempt", "")
        if attempt < request["attempt"]:
            return dict(state="ended", status=GONE, reason="nothing is known of it any more")
        if attempt > request["attempt"] or state["state"] == "ended":
            return dict(state, taken=attempt > request["attempt"])
        if state != said or time.monotonic() > beat + BEAT:
            wire.send(state=state)
            said, beat = state, time.monotonic()
        time.sleep(LOOKING)


def main() -> None:
    """Answers one request."""
    wire.answer(act)
