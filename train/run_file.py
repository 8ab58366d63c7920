"""What a run has to know of itself besides its saved steps: run.json in its folder.

``saved`` is the newest step that was whole since the run's beginning, 0 where there was none: where
none is left, the run is refused rather than begun anew. ``begun_from`` is what
``checkpoint.restore_from`` stood for. ``digest`` is the SHA-256 of the rest.
"""

import json
from typing import Any

from configs.files import read_if_there, write_text
from configs.folders import Folder
from model.manifest import digest_of

NAME = "run.json"


def read(workdir: Folder) -> dict[str, Any]:
    """Returns what is known; nothing where the file is missing or damaged.

    Raises:
      UserError: an object store does not answer.
    """
    try:
        found = json.loads(read_if_there(workdir / NAME))
        if found.pop("digest") != digest_of(found):
            return {}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {}
    return found


def write(workdir: Folder, saved: int, begun_from: dict[str, Any] | None) -> None:
    """Writes what is known.

    Raises:
      UserError: it cannot be written.
    """
    known: dict[str, Any] = dict(saved=saved, begun_from=begun_from)
    known["digest"] = digest_of(known)
    write_text(workdir / NAME, json.dumps(known, indent=1, sort_keys=True) + "\n")
