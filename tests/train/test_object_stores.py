"""Runs whose folder is in an object store, which drops, delays and vanishes."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from configs.errors import UserError
from configs.folders import run_folder
from tests.train import object_stores
from tests.train.processes import running
from tests.train.processes.running import ROOT

pytestmark = pytest.mark.extras
PACKAGES = dict(gs=("gcsfs", "gcp_storage_emulator"), s3=("s3fs", "moto"))
FIELDS = (
    *running.TINY,
    "--config.host_devices=1",
    "--config.mesh.fsdp=1",
    "--config.steps_per_call=1",
    "--config.steps=30",
    "--config.checkpoint.every=2",
    "--config.checkpoint.keep=3",
    "--config.log.tensorboard=True",
)
CONSTANT = ("--config.optim.schedule=constant",)
# What a run of these fields says of its steps, and whether its steps are whole.
READ = """
import json, sys
from configs.folders import run_folder
from model import manifest
from model.saved import Damaged, open_step
from configs.files import sizes
from train.metrics import read
workdir = run_folder(sys.argv[1], "workdir")
whole = manifest.whole_steps(workdir)
for step in whole:
    try:
        open_step(workdir / "checkpoints" / str(step), ("model", "optimizer"))
    except Damaged:
        if step in manifest.whole_steps(workdir):
            raise  # else the run has thinned it meanwhile
losses = [[row["step"], row["loss"]] for row in read(workdir) if "loss" in row]
print(json.dumps([whole, losses, list(sizes(workdir / "profile"))]))
"""


DELETED = """
import sys
from configs.folders import run_folder
path = run_folder(sys.argv[1], "--workdir")
path.write_text("words")
with path.open("rb") as file:
    path.unlink()
    try:
        file.read()
    except FileNotFoundError:
        print("it is gone")
"""


def start(workdir, store, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "train", *FIELDS, *more, f"--workdir={workdir}"],
        cwd=ROOT,
        env=running.environment() | store,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, status=0, seconds=400):
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == status, out + err
    assert "Traceback" not in err, err
    return out, err


def look(workdir, store):
    """Returns a run's whole steps, losses and traces, as another process reads them."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(workdir)],
        cwd=ROOT,
        env=running.environment() | store,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Returns the steps and losses of the same run in a folder of this machine."""
    workdir = tmp_path_factory.mktemp("here")
    ended(start(workdir, {}))
    return look(workdir, {})


def wait_for_step(workdir, store, process, step):
    """Returns when a run in a store has saved a step."""
    until = time.monotonic() + 200
    while time.monotonic() < until and process.poll() is None:
        steps, *_ = look(workdir, store)
        if steps and steps[-1] >= step:
            return
        time.sleep(0.5)
    raise AssertionError(process.communicate() if process.poll() is not None else "too slow")


def survive(scheme, seconds):
    """Trains in a store that drops and delays, and is gone for so many seconds."""
    workdir = f"{scheme}://runs/{scheme}/toy"
    with object_stores.emulated(scheme, seed=3) as (proxy, store):
        proxy.drops, proxy.delay = 0.03, 0.05
        process = start(workdir, store)
        wait_for_step(workdir, store, process, 4)
        proxy.gone = True
        time.sleep(seconds)
        proxy.gone = False
        ended(process)
        assert proxy.dropped > 3
        assert proxy.passed > 100
        proxy.drops = 0.0
        return look(workdir, store)


def test_a_run_survives_a_store_that_drops_delays_and_is_gone_for_a_minute(here, extra):
    extra(*PACKAGES["gs"], *PACKAGES["s3"])
    with ThreadPoolExecutor(2) as threads:
        for steps, losses, _ in threads.map(lambda scheme: survive(scheme, 60), PACKAGES):
            assert losses == here[1]
            # A save whose answer was lost is missed, and none but whole ones count.
            assert steps[-1] == 30
            assert len(steps) == 3


@pytest.mark.parametrize("scheme", PACKAGES)
def test_a_killed_run_goes_on_and_a_second_one_is_refused(extra, scheme):
    extra(*PACKAGES[scheme])
    workdir = f"{scheme}://runs/killed"
    with object_stores.emulated(scheme) as (_, store):
        first = start(workdir, store, "--config.steps=100000", *CONSTANT)
        wait_for_step(workdir, store, first, 4)
        _, err = ended(start(workdir, store), status=2)
        assert f"--workdir={workdir} is used by process {first.pid} on " in err
        running.kill(first)
        last = look(workdir, store)[0][-1]
        more = (f"--config.steps={last + 2}", f"--config.log.profile=({last + 1},{last + 1})")
        out, _ = ended(start(workdir, store, *more, *CONSTANT))
        assert f"resumed from step {last}" in out
        steps, losses, traces = look(workdir, store)
    assert any(name.endswith(".xplane.pb") for name in traces)
    assert steps[-1] == last + 2
    assert [step for step, _ in losses] == [*range(1, last + 3)]


def test_what_is_deleted_while_it_is_read_is_not_asked_for_again(extra):
    extra(*PACKAGES["s3"])
    with object_stores.emulated("s3") as (_, store):
        done = subprocess.run(
            [sys.executable, "-c", DELETED, "s3://runs/a/file"],
            cwd=ROOT,
            env=running.environment() | store,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "it is gone\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("az://runs/toy", "of object stores gs:// and s3:// can"),
        ("gs://runs", "must name a bucket and a folder in it"),
        ("gs://runs/a[1]", "must name a bucket and a folder in it"),
    ],
)
def test_a_folder_that_cannot_be_in_a_store_is_refused(name, sentence):
    with pytest.raises(UserError, match=sentence):
        run_folder(name, "--workdir")
