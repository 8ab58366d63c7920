"""Object stores as folders: gs:// and s3://, by fsspec's file systems, with patience.

A store that does not answer for a while must not end a run of weeks: requests that fail for a
passing reason are repeated for ``PATIENCE`` seconds.
"""

import asyncio
import functools
import importlib.util
import io
import logging
import os
import re
import sys
import time
from typing import Any

import fsspec

from configs.console import tell
from configs.errors import UserError, first_line

PATIENCE = 600.0  # seconds
_LONGEST_PAUSE = 15.0  # seconds between two tries
_SAID_EVERY = 60.0  # seconds
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # the file system of each scheme


def prepare(name: str, field: str) -> None:
    """Makes the file system of a path such as ``gs://bucket/run`` usable.

    Args:
      name: the path.
      field: what gave it, for errors.

    Raises:
      UserError: nothing here can write there, a package is missing, or the bucket's name is.
    """
    scheme, _, rest = name.partition("://")
    if scheme not in _PACKAGES:
        known = " and ".join(f"{known}://" for known in _PACKAGES)
        raise UserError(
            f"{field}={name} cannot be written: of object stores {known} can; name one of these, "
            "or a folder of a mounted disk."
        )
    if not re.fullmatch(r"[^/?#\[\]*%\\\s]+(/[^/?#\[\]*%\\]+)+/?", rest):
        raise UserError(
            f"{field}={name} must name a bucket and a folder in it, without any of ?#[]*%\\, such "
            f"as {scheme}://bucket/runs/toy."
        )
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        raise UserError(
            f"{field}={name} needs the package {_PACKAGES[scheme]}; install it with "
            f"pip install -e '.[{scheme}]'."
        )
    _patient(scheme)


@functools.cache
def _patient(scheme: str) -> None:
    """Has the file system of a scheme repeat requests, and remember no listings."""
    # What another process has written would not be seen.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    if scheme == "s3":
        _patient_s3()
    else:
        _patient_gs()


def _patient_s3() -> None:
    import s3fs
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError
    from s3fs.utils import FileExpired

    # What is said of an object: as OSErrors, in which s3fs has turned its answers.
    lasting = (FileExistsError, FileExpired, FileNotFoundError, PermissionError)

    def passing(error: BaseException) -> bool:
        if isinstance(error, lasting):
            return False
        if isinstance(error, ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return status in (408, 429) or status >= 500
        return isinstance(error, ConnectionError | HTTPClientError | OSError | TimeoutError)

    def repeated(error: BaseException) -> bool:
        if passing(error):
            _say_that_it_repeats("s3", error)
            return True
        return False

    s3fs.core.set_custom_error_handler(repeated)
    # Its pauses grow by 1.7 from 0.1 s and stay at 15 s.
    s3fs.S3FileSystem.retries = 10 + int(PATIENCE / 15.0)


def _patient_gs() -> None:
    # It would ask for the bucket's kind first, and complain where that is not allowed.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import gcsfs
    from gcsfs.retry import is_retriable

    class Patient(gcsfs.core.GCSFileSystem):
        """Repeats for longer than the half minute of its parent."""

        async def _call(self, *given: Any, **more: Any) -> Any:
            until, pause = time.monotonic() + PATIENCE, 1.0
            while True:
                try:
                    return await super()._call(*given, **more)
                except Exception as error:
                    if not is_retriable(error) or time.monotonic() > until:
                        raise
                    _say_that_it_repeats("gs", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

        def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
            return _Whole(self, path) if mode == "wb" else super()._open(path, mode, **more)

    # Its own half minute ends in a traceback in the log each time.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Patient, clobber=True)


_said: dict[str, float] = {}  # when, by scheme


def _say_that_it_repeats(scheme: str, error: BaseException) -> None:
    """Says, now and then, that requests are repeated: a person may see a mistake by it."""
    now = time.monotonic()
    if now - _said.get(scheme, -_SAID_EVERY) >= _SAID_EVERY:
        _said[scheme] = now
        tell(
            f"a request to {scheme}:// failed ({first_line(error)}); such are repeated for "
            f"{PATIENCE / 60:g} minutes",
            sys.stderr,
        )


class _Whole(io.BytesIO):
    """A small object that is written in one request, which can be repeated.

    A session of several requests cannot, where the answer to the last one was lost.
    """

    def __init__(self, system: Any, path: str):
        super().__init__()
        self._system, self._path = system, path

    def close(self) -> None:
        if not self.closed:
            self._system.pipe_file(self._path, self.getvalue())
        super().close()
