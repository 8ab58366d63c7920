"""Where a user's things are."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Returns the folder of this project's caches.

    It is ``$XDG_CACHE_HOME/manyheads``, or ``~/.cache/manyheads``.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(home).expanduser() / "manyheads"
