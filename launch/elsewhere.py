"""A job on machines that have a copy of the code, and nothing else of this machine."""

import dataclasses
import os
from pathlib import Path

from configs.errors import UserError
from launch.job import Job

CODE = Path(__file__).parent.parent


def moved(job: Job) -> Job:
    """Returns the job as it is to be run where the code has been copied to.

    A run outlives its machines, and may have several: its folder has to be in an object store, or
    on a disk that each of them mounts.

    Args:
      job: as it was described here.

    Raises:
      UserError: the config is not among the code, or the workdir would be lost.
    """
    file, colon, argument = job.config.partition(":")
    path = Path(os.path.normpath(Path(file).absolute()))
    if not path.is_relative_to(CODE):
        raise UserError(
            f"--config={file} is outside of {CODE}, which is all that is copied; put it there, for "
            "example into configs/."
        )
    if not job.workdir:
        raise UserError("--workdir is missing; name one such as gs://bucket/run.")
    if "://" not in job.workdir and not job.workdir.startswith("/"):
        raise UserError(
            f"--workdir={job.workdir} is on a disk that goes with its machine; name a folder of an "
            "object store, such as gs://bucket/run, or of a disk that all machines mount, from /."
        )
    return dataclasses.replace(job, config=f"{path.relative_to(CODE)}{colon}{argument}")


def extras(job: Job, *own: str) -> list[str]:
    """Returns the extras of this package that a job needs.

    Args:
      job: what is run.
      own: of its accelerator.
    """
    texts = (job.workdir, *job.overrides)
    stores = [name for name in ("gs", "s3") if any(f"{name}://" in text for text in texts)]
    return [*own, *stores]
