"""Unattended runs: a group of processes that ends before the run does is started again."""

import functools
import math
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from configs.console import tell

flags.disclaim_key_flags()

MISTAKE = 2  # exit status of a user's mistake, which another start would repeat
STALL = 10.0  # minutes, with --restarts
_DOUBLINGS = 64  # at most; beyond, a wait is the longest at any rate


class Ending(NamedTuple):
    """How a group of processes ended."""

    status: int  # exit status of the first process that failed; 0: the run is finished
    reason: str = ""  # what ended it, as a sentence begins; empty: its status says all
    step: int = -1  # the last that was finished since the start; -1: none
    stacks: str = ""  # where the stacks of its threads are, as half a sentence
    wanted: bool = False  # whether somebody had it stopped, who is not this command


class Restarts:
    """Decides whether a group is started again, and when.

    Attributes:
      in_a_row: starts since the run last got further.
    """

    def __init__(self, limit: int, first: float, longest: float):
        """Args: how many in a row; seconds before the first of them, doubled each time, up to."""
        self.limit, self._first, self._longest = limit, first, longest
        self.in_a_row = 0

    def after(self, status: int, progress: bool) -> float:
        """Returns the seconds until the next start; infinity to give up.

        Args:
          status: of the group that has ended.
          progress: whether the run has come further than ever before.
        """
        if progress:
            self.in_a_row = 0
        if status in (0, MISTAKE) or self.in_a_row >= self.limit:
            return math.inf
        wait = self._first * 2.0 ** min(self.in_a_row, _DOUBLINGS)
        self.in_a_row += 1
        return min(wait, self._longest)


def supervise(
    attempt: Callable[[], Ending],
    restarts: Restarts,
    saved: Callable[[], int],
    asked: list[int],
    say: Callable[[str], None] | None = None,
) -> int:
    """Starts a group again and again until the run is finished, or it is of no use.

    The run has come further when it has finished, or saved, a later step than ever before: one that
    fails at the same step again and again gets no further, though it repeats those before.

    Args:
      attempt: starts the group, and returns when all its processes have ended.
      restarts: decides.
      saved: returns the newest saved step of the run; 0 where there is none.
      asked: fills with the signals that asked this process to end.
      say: shows a line; on standard error when None.

    Returns:
      The exit status: 128 + the signal that asked it to end, else of the last group. What somebody
      else has had stopped is not started again.
    """
    say = say or functools.partial(tell, stream=sys.stderr)
    newest = furthest = saved()
    while True:
        ending = attempt()
        if ending.wanted:
            say(f"error: {_reason(ending)}, as somebody stopped it; run again to go on.")
            return ending.status
        if asked:
            by_signal = restarts.limit and ending.status > 128
            return 128 + asked[0] if by_signal else ending.status
        before = newest, furthest
        newest = saved()
        furthest = max(furthest, newest, ending.step)
        progress = newest > before[0] or furthest > before[1]
        wait = restarts.after(ending.status, progress)
        if wait == math.inf:
            if sentence := _given_up(ending, restarts.limit):
                say(f"error: {sentence}")
            return ending.status
        where = f"step {newest}" if newest else "the beginning"
        say(
            f"restart {restarts.in_a_row} of {restarts.limit}: {_reason(ending)}; the run goes on "
            f"from {where} in {wait:g} s."
        )
        until = time.monotonic() + wait
        while time.monotonic() < until and not asked:
            time.sleep(0.05)
        if asked:
            name = signal.Signals(asked[0]).name
            say(f"error: asked to end by {name}, with nothing new to save; run again.")
            return 128 + asked[0]


def _given_up(ending: Ending, limit: int) -> str:
    """Returns why there is no further start; empty where a process has said it all."""
    goes_on = "the same command goes on from what was saved."
    if not limit:
        return f"{_reason(ending)}; {goes_on}" if ending.reason else ""
    if ending.status == MISTAKE:
        return (
            f"{_reason(ending)}, a mistake that a restart would repeat; put right what is said "
            "above, then run again."
        )
    if ending.status:
        times = "1 restart" if limit == 1 else f"{limit} restarts"
        return f"{_reason(ending)}, after {times} without a new step; {goes_on}"
    return ""


def _reason(ending: Ending) -> str:
    reason = ending.reason
    if not reason:
        by_signal = {128 + number: number.name for number in signal.Signals}.get(ending.status)
        reason = f"the processes ended with exit status {ending.status}"
        reason = f"the processes were asked to end by {by_signal}" if by_signal else reason
    return "; ".join(part for part in (reason, ending.stacks) if part)


def define_flags() -> None:
    """Defines ``--restarts``, ``--stall``, ``--backoff`` and ``--backoff_max``."""
    flags.DEFINE_integer(
        "restarts",
        0,
        "How many times in a row all are started again after a crash or a hang; once the run has "
        "come further than before, the count begins anew.",
        0,
    )
    flags.DEFINE_float(
        "stall",
        None,
        "Minutes without a finished step after which all show the stacks of their threads and are "
        "ended, as after a crash; to start, evaluate and save may take three times as long, at "
        f"least 30. 0: however long; the default is {STALL:g} with --restarts, else 0.",
        0.0,
    )
    flags.DEFINE_float(
        "backoff", 5.0, "Seconds before the first restart in a row, doubled before each further.", 0
    )
    flags.DEFINE_float("backoff_max", 300.0, "Seconds before a restart, at most.", 0)


def restarts() -> Restarts:
    """Returns what the flags say."""
    given = flags.FLAGS
    return Restarts(given.restarts, given.backoff, given.backoff_max)


def stall() -> float:
    """Returns the minutes of ``--stall``."""
    return minutes(flags.FLAGS.stall, flags.FLAGS.restarts)


def minutes(given: float | None, restarts: int) -> float:
    """Returns ``--stall``, or its default: what nobody looks after is looked after."""
    if given is not None:
        return given
    return STALL if restarts else 0.0
