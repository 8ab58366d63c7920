"""Has SkyPilot itself read a task; run as a script by the Python that SkyPilot is installed in.

Its standard input is the task; its arguments are the names of secrets that are given at the start.
Nothing of this project is imported: SkyPilot lives in an environment of its own.
"""

import sys

import sky
import yaml

REFUSED = 3  # exit status


def main() -> None:
    """Reads the task; prints why SkyPilot refuses it, and exits with ``REFUSED``."""
    config = yaml.safe_load(sys.stdin.read())
    try:
        sky.Task.from_yaml_config(config, secrets_overrides=[(name, "-") for name in sys.argv[1:]])
    except Exception as error:  # whatever SkyPilot raises, it refuses the task
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(" ".join(lines)[:500] or type(error).__name__)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
