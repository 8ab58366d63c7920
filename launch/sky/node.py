"""What each node of a SkyPilot task runs: training, told of its place by SkyPilot's variables.

``python -m launch.sky.node`` reads the arguments as JSON from ``$MANYHEADS_JOB`` and becomes
``python -m train``: no shell has assembled a line of them. Hosts of a TPU slice find themselves.

Source: https://docs.skypilot.co/en/latest/running-jobs/environment-variables.html
"""

import json
import os
import sys
from collections.abc import Mapping

VARIABLE = "MANYHEADS_JOB"
SLICE, NODES = "slice", "nodes"  # who tells a process of its place: its TPU's slice, or SkyPilot


def description(arguments: list[str], joined: str) -> str:
    """Returns the value of ``$MANYHEADS_JOB``, one line of ASCII.

    Args:
      arguments: of ``python -m train``.
      joined: ``SLICE`` or ``NODES``.
    """
    return json.dumps(dict(arguments=arguments, joined=joined))


def words(variables: Mapping[str, str], python: str) -> list[str]:
    """Returns the command of this node.

    Args:
      variables: the environment.
      python: the interpreter.
    """
    job = json.loads(variables[VARIABLE])
    line = [python, "-m", "train", *job["arguments"]]
    if job["joined"] == SLICE:
        return line
    count = int(variables["SKYPILOT_NUM_NODES"])
    line.append(f"--num_processes={count}")
    if count > 1:
        first = variables["SKYPILOT_NODE_IPS"].split()[0]
        host = f"[{first}]" if ":" in first else first
        line += [f"--coordinator={host}", f"--process_id={variables['SKYPILOT_NODE_RANK']}"]
    return line


def main() -> None:
    """Becomes the process of the run."""
    line = words(os.environ, sys.executable)
    sys.stdout.flush()
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
