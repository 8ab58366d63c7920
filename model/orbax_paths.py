"""Paths as Orbax can read and write them.

It looks for what its processes have written by a pattern, and gives tensorstore paths in URLs: a
folder whose name has a bracket, a backslash or a percent sign loses every array, with a warning.
Of object stores it knows gs:// alone, where it need only be given the driver of another.
"""

import contextlib
import functools
import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folders import Folder

_PLAIN = re.compile(r"[\w./~@+=,: -]+", re.ASCII)


def written_as(path: Folder) -> Folder:
    """Returns a path of the same folder that Orbax takes as it is written.

    For a name with other characters it goes through a symbolic link in the user's own part of a
    temporary folder. All processes of a machine come to the same one.

    Raises:
      UserError: no such link can be made; this version of Orbax cannot write the object store.
    """
    if not isinstance(path, Path):
        if str(path).startswith("s3://"):
            _teach_s3()
        return path
    if _PLAIN.fullmatch(str(path)):
        return path
    parent, rest = path, Path()
    if _PLAIN.fullmatch(path.name):
        parent, rest = path.parent, Path(path.name)
    # TMPDIR may have such a name too.
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp")
    place = next(place for place in places if _PLAIN.fullmatch(place))
    links = Path(place) / f"manyheads-{os.getuid()}"
    link = links / hashlib.sha256(os.fsencode(parent)).hexdigest()[:32]
    try:
        links.mkdir(mode=0o700, exist_ok=True)
        about = links.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            raise OSError(0, "it is somebody else's")
        if not link.is_symlink():
            with contextlib.suppress(FileExistsError):  # by another process, just now
                link.symlink_to(parent)
    except OSError as error:
        raise UserError(
            f"{path} has a name that cannot be written as it is, and {links} cannot be used "
            f"({error.strerror}); name another folder, of letters, digits and ./_-."
        ) from error
    return link / rest


@functools.cache
def _teach_s3() -> None:
    """Has Orbax write s3:// as it writes gs://, by tensorstore's driver for it."""
    try:
        from orbax.checkpoint._src.path import gcs_utils
        from orbax.checkpoint._src.serialization import tensorstore_utils

        is_store, spec = gcs_utils.is_gcs_path, gcs_utils.get_kvstore_for_gcs
        normal, uses_driver = tensorstore_utils._normalize_path, tensorstore_utils._use_gcs_driver
    except (ImportError, AttributeError) as error:
        raise UserError(
            "this version of orbax-checkpoint cannot be taught to write s3://; install the one "
            "that requirements.lock names, or use gs:// or a mounted disk."
        ) from error

    def is_s3(path: Any) -> bool:
        return os.fspath(path).startswith("s3://")

    gcs_utils.is_gcs_path = lambda path: is_store(path) or is_s3(path)
    gcs_utils.get_kvstore_for_gcs = lambda path: s3_store(path) if is_s3(path) else spec(path)
    tensorstore_utils._normalize_path = lambda path: normal(path).replace("s3:/", "s3://")
    tensorstore_utils._use_gcs_driver = lambda path: uses_driver(path) or is_s3(path)


def s3_store(path: str) -> dict[str, Any]:
    """Returns tensorstore's spec of ``s3://bucket/path``.

    The endpoint and the region are those that AWS' own tools take from the environment.
    """
    bucket, _, key = path.removeprefix("s3://").partition("/")
    found: dict[str, Any] = dict(driver="s3", bucket=bucket, path=key)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        found["endpoint"] = endpoint
        region = region or "us-east-1"
    if region:
        found["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:
        found["aws_credentials"] = dict(type="environment")
    return found
