"""Values of files that may hold anything: what is not as it should be is not known."""

import datetime
import json
from typing import Any

LARGEST = 2.0**53  # beyond, a count is none


def document(data: bytes) -> dict[str, Any] | None:
    """Returns the JSON object that bytes hold; None where they hold none."""
    try:
        found = json.loads(data.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def table(value: Any) -> dict[str, Any]:
    """Returns a JSON object; empty where it is none."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[dict[str, Any]]:
    """Returns the objects of a JSON list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """Returns a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST else None  # which no comparison of NaN is


def whole(value: Any) -> int | None:
    """Returns a whole number that is not negative."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and 0 <= value < LARGEST else None


def words(value: Any, longest: int = 300) -> str:
    """Returns the first line of a text as a terminal can show it: nothing in it steers one."""
    text = value if isinstance(value, str) else ""
    line = next(iter(text.strip().splitlines()), "")
    shown = "".join(letter if letter.isprintable() else "?" for letter in line)
    return shown if len(shown) <= longest else f"{shown[:longest]}..."


def moment(value: Any) -> float | None:
    """Returns the time of an ISO text with an offset, in seconds since 1970."""
    try:
        found = datetime.datetime.fromisoformat(value)
        return found.timestamp() if found.tzinfo else None
    except (TypeError, ValueError, OverflowError, OSError):
        return None
