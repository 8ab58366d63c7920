"""One contender in a process of its own, which runs when it is told to.

``python -m bench.worker MODULE:CLASS '{"argument": "value"}'`` builds the contender, then answers
each line of standard input, a number of repetitions, with a line of JSON.
"""

import importlib
import json
import os
import resource
import sys
import time


def peak_bytes() -> int:
    """Returns the most memory that this process has had resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(name: str, arguments: dict) -> None:
    """Builds the contender and runs it as often as asked.

    Args:
      name: "module:Class".
      arguments: of the class.
    """
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    module, _, cls = name.partition(":")
    contender = getattr(importlib.import_module(module), cls)(**arguments)
    print(json.dumps(dict(ready=True)), file=answers, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        found = contender.run(int(line))
        seconds = time.perf_counter() - began
        answer = dict(seconds=seconds, peak_bytes=peak_bytes(), **found)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
