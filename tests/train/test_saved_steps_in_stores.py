"""Saved steps of an object store looked after by the command."""

import subprocess
import sys

import pytest

from tests.train import object_stores
from tests.train.processes import running
from tests.train.processes.running import ROOT
from tests.train.test_object_stores import PACKAGES

pytestmark = pytest.mark.extras
SAVE = """
import sys
from configs.folders import run_folder
from tests.train import saved_runs, tiny
config = tiny.config({"model.num_layers": 1})
model = saved_runs.model(config, 1)
saved_runs.write(run_folder(sys.argv[1], "--workdir"), dict.fromkeys((2, 4), model), config)
"""


@pytest.mark.parametrize("scheme", PACKAGES)
def test_every_verb_works_in_a_store(extra, scheme, tmp_path):
    extra(*PACKAGES[scheme])
    run, model = f"{scheme}://runs/a/toy", f"{scheme}://runs/b/model"
    with object_stores.emulated(scheme) as (_, store):

        def said(*words):
            done = subprocess.run(
                [sys.executable, *words],
                cwd=ROOT,
                env=running.environment() | store,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        def command(*words):
            return said("-m", "train.checkpoint", *words)

        said("-c", SAVE, run)
        given = f"--checkpoint={run}"
        assert command("list", given).count(" whole ") == 3  # two steps, and what is kept
        assert command("export", given, f"--to={tmp_path / 'out'}").startswith(str(tmp_path))
        command("export", given, f"--to={model}", "--as=model")
        assert "whole, " in command("verify", f"--checkpoint={model}")
        words = command("diff", given, f"--other={model}", "--values")
        assert "arrays of the same shape have equal bits" in words
        assert "step 2: deleted, " in command("prune", given, "--keep=1")
        assert command("verify", given).splitlines()[0].startswith("step 4: whole, ")


# Nobody listens there.
NOWHERE = {
    "AWS_ENDPOINT_URL": "http://localhost:1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "STORAGE_EMULATOR_HOST": "http://localhost:1",
    "GOOGLE_CLOUD_PROJECT": "nobody-s",
}

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}

# The patience of ten minutes is over at once.
COMMAND = """
import runpy, sys
from configs import object_stores
object_stores.PATIENCE = -120.0
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("scheme", "module", "words"),
    [
        ("s3", "train.checkpoint", ("list", "--checkpoint={}")),
        ("s3", "train.evaluate", ("--checkpoint={}",)),
        ("s3", "train.replay", ("--workdir={}", "--step=1")),
        ("gs", "train.evaluate", ("--checkpoint={}",)),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_sentence(extra, scheme, module, words):
    extra(*PACKAGES[scheme])
    given = [word.format(f"{scheme}://runs/b/toy") for word in words]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, module, *given],
        cwd=ROOT,
        env=running.environment() | NOWHERE | (CREDENTIALS if module == "train.evaluate" else {}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    (*repeated, sentence) = done.stderr.splitlines()
    assert f"{scheme}://runs/b/toy" in sentence
    assert "see that it can be reached" in sentence
    # Without credentials nothing is asked; of gs:// its client has repeated it itself.
    assert len(repeated) == (scheme == "s3" and module == "train.evaluate")
    assert all(line.startswith(f"a request to {scheme}:// failed (") for line in repeated)
