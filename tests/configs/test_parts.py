"""What is new in a folder, and parts of files, on a disk and in an object store."""

import os
import subprocess
import sys

import pytest

from configs.errors import UserError
from configs.parts import part, versions
from tests.train import object_stores
from tests.train.processes import running


def test_a_folder_lists_its_plain_files(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "inner").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    found = versions(tmp_path)
    assert {name: version.size for name, version in found.items()} == {"a": 5, "link": 5}
    assert versions(tmp_path / "nowhere") == versions(tmp_path / "a") == {}


def test_a_version_tells_what_was_appended_from_what_was_made_anew(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"123")
    first = versions(tmp_path)["a"]
    assert versions(tmp_path)["a"] == first
    with open(path, "ab") as file:
        file.write(b"45")
    os.utime(path, ns=(1, 1))
    longer = versions(tmp_path)["a"]
    assert longer.made == first.made
    assert longer.changed != first.changed
    again = tmp_path / "part"
    again.write_bytes(b"12345")
    os.replace(again, path)
    assert versions(tmp_path)["a"].made != first.made


def test_parts_are_the_bytes_that_are_there(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    assert part(tmp_path / "a", 10, 13) == bytes([10, 11, 12])
    assert part(tmp_path / "a", 98, 1000) == bytes([98, 99])
    assert part(tmp_path / "a", 100, 200) == part(tmp_path / "a", 5, 5) == b""
    with pytest.raises(UserError, match=r"nowhere cannot be read \(No such file or directory\)"):
        part(tmp_path / "nowhere", 0, 1)


IN_STORE = """
import sys
from configs.folders import run_folder
from configs.parts import part, versions

folder = run_folder(sys.argv[1], "WORKDIR")
assert versions(folder) == {}
(folder / "a").write_text("0123456789")
(folder / "empty").write_text("")
(folder / "inner" / "b").write_text("b")
first = versions(folder)
assert {name: version.size for name, version in first.items()} == {"a": 10, "empty": 0}, first
assert versions(folder) == first
assert part(folder / "a", 7, 10) == b"789"
assert part(folder / "a", 0, 4) == b"0123"
(folder / "a").write_text("0123456789x")
assert versions(folder)["a"].size == 11
assert versions(folder)["a"].changed != first["a"].changed
print("well")
"""


@pytest.mark.extras
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_an_object_store_does_the_same(scheme, extra):
    extra("gcsfs", "s3fs", "moto", "gcp_storage_emulator")
    with object_stores.emulated(scheme) as (_, environment):
        done = subprocess.run(
            [sys.executable, "-c", IN_STORE, f"{scheme}://runs/a/run"],
            cwd=running.ROOT,
            env=running.environment() | environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
