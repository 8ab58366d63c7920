"""What a run has to know of itself besides its saved steps: run.json in its folder.

``saved`` is the newest step that was whole: where none is left, the run is refused rather than
begun anew. ``begun_from`` is what ``checkpoint.restore_from`` stood for when the run began.
"""

import json
from typing import Any

from configs.files import names, read_text, write_text
from configs.folders import Folder

NAME = "run.json"


def read(workdir: Folder) -> dict[str, Any]:
    """Returns what is known; nothing where the file is missing or damaged.

    Raises:
      UserError: an object store does not answer.
    """
    if NAME not in names(workdir):
        return {}
    try:
        found = json.loads(read_text(workdir / NAME))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write(workdir: Folder, **known: Any) -> None:
    """Adds to what is known.

    Raises:
      UserError: it cannot be written.
    """
    text = json.dumps(read(workdir) | known, indent=1, sort_keys=True)
    write_text(workdir / NAME, text + "\n")
