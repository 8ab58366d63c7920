"""A damaged file of any step is noticed, and the newest step that is whole is taken."""

import collections
import random
import shutil

import jax
import numpy as np
import pytest

from configs.errors import UserError
from model.parameter import named_arrays
from model.saved import open_saved
from tests.train import tiny
from tests.train.corrupting import KINDS, corrupt
from train.checkpoints import Checkpoints
from train.pruning import plan
from train.saved_steps import find
from train.step import init_state, make_optimizer

STEPS = (5, 10, 15)
FIELDS = {
    "model.num_layers": 1,
    "model.mlp": "none",
    "optim.ema": 0.5,
    "checkpoint.every": 5,
    "checkpoint.keep": 3,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a run's folder, config and mesh, and the arrays of its state at each step."""
    workdir = tmp_path_factory.mktemp("run")
    stepper = tiny.Stepper(tiny.config(FIELDS), tiny.mesh())
    state, expected = stepper.start(), {}
    checkpoints = Checkpoints(workdir, stepper.config, None)
    for step in STEPS:
        state, _ = stepper.call(state)
        checkpoints.save(state, step)
        expected[step] = tiny.arrays(state)
    checkpoints.wait()
    return workdir, stepper, expected


def restored(workdir, stepper):
    """Returns the step that a run would go on from, and its arrays."""
    shape = tiny.model_config(stepper.config)
    optimizer = make_optimizer(stepper.config, shape)
    with jax.set_mesh(stepper.mesh):
        abstract = jax.eval_shape(lambda k: init_state(shape, optimizer, k), jax.random.key(0))
        checkpoints = Checkpoints(workdir, stepper.config, None)
        found = checkpoints.find()
        return found.step, tiny.arrays(checkpoints.restore(found, abstract, stepper.mesh))


def check(run, seed, tmp_path):
    """Corrupts a copy of the run, and checks what is then restored and opened."""
    workdir, stepper, expected = run
    copy = shutil.copytree(workdir, tmp_path / str(seed))
    done = corrupt(copy / "checkpoints", random.Random(seed))
    whole = max(step for step in STEPS if step != done.step)
    step, arrays = restored(copy, stepper)
    assert step == whole, (seed, done)
    tiny.assert_equal(arrays, expected[step])
    # The step itself is refused, if what is asked of it is what is damaged.
    folder = copy / "checkpoints" / str(done.step)
    try:
        model = open_saved(folder).load_model(stepper.mesh)
    except UserError:
        pass
    else:
        assert done.file.startswith(("optimizer/", "ema/")), (seed, done)
        found = {f"model.{n}": np.asarray(a) for n, a in named_arrays(model).items()}
        tiny.assert_equal(found, {name: expected[done.step][name] for name in found})
    shutil.rmtree(copy)
    return done


def test_no_corruption_is_believed(run, tmp_path):
    for seed in range(12):
        check(run, seed, tmp_path)


@pytest.mark.slow
def test_none_of_many_corruptions_is_believed(run, tmp_path):
    done = [check(run, seed, tmp_path) for seed in range(1000, 1200)]
    assert {found.kind for found in done} == {*KINDS}
    files = collections.Counter(found.file.rpartition("/")[2][:8] for found in done)
    assert {"manifest", "config.j", "state.js", "_METADAT", "_shardin"} <= {*files}


def test_a_step_under_another_s_name_is_passed_over(run, tmp_path):
    workdir, stepper, expected = run
    copy = shutil.copytree(workdir, tmp_path / "run")
    steps = copy / "checkpoints"
    (steps / "15").rename(steps / "20")
    step, arrays = restored(copy, stepper)
    assert step == 10
    tiny.assert_equal(arrays, expected[10])


def newer_format(step):
    file = step / "manifest.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 3'))


def reduced(step):
    shutil.rmtree(step / "optimizer")
    (step / "state.json").unlink()


def as_file(step):
    shutil.rmtree(step)
    step.write_text("")


def as_loop(step):
    shutil.rmtree(step)
    step.symlink_to(step.name)


@pytest.mark.parametrize("damage", [newer_format, reduced, as_file, as_loop])
@pytest.mark.parametrize("number", [5, 15])
def test_what_is_no_step_any_more_stands_in_no_other_s_way(run, tmp_path, damage, number):
    workdir, stepper, expected = run
    copy = shutil.copytree(workdir, tmp_path / "run")
    damage(copy / "checkpoints" / str(number))
    step, arrays = restored(copy, stepper)
    assert step == (15 if number == 5 else 10)
    tiny.assert_equal(arrays, expected[step])
    found = find(str(copy))
    assert found.whole == [n for n in STEPS if n != number]
    verdicts = {verdict.name: verdict.goes for verdict in plan(found, keep=1)}
    assert [name for name, goes in verdicts.items() if goes] == [
        f"step {n}" for n in STEPS if n not in (number, step)
    ]


def test_a_copy_under_a_name_of_one_s_own_is_opened(run, tmp_path):
    workdir, stepper, expected = run
    step = workdir / "checkpoints" / "15"
    copy = shutil.copytree(step, tmp_path / "checkpoints" / "best")
    model = open_saved(copy).load_model(stepper.mesh)
    found = {f"model.{n}": np.asarray(a) for n, a in named_arrays(model).items()}
    tiny.assert_equal(found, {name: expected[15][name] for name in found})


def test_steps_that_are_all_damaged_are_not_begun_anew(run, tmp_path):
    workdir, stepper, _ = run
    copy = shutil.copytree(workdir, tmp_path / "run")
    for step in STEPS:
        file = copy / "checkpoints" / str(step) / "config.json"
        file.write_text(
            file.read_text().replace('"rotary_base": 10000.0', '"rotary_base": 90000.0')
        )
    with pytest.raises(UserError, match="holds step 5, 10, 15, with files .* changed; copy it"):
        restored(copy, stepper)
    with pytest.raises(UserError, match="config.json does not hold what was written"):
        open_saved(copy)


def test_a_damaged_step_of_a_later_number_costs_no_good_one(run, tmp_path):
    workdir, stepper, expected = run
    copy = shutil.copytree(workdir, tmp_path / "run")
    state = copy / "checkpoints" / "15" / "state.json"
    state.write_text(state.read_text().replace("15", "51"))  # of the same size
    config = stepper.config.copy_and_resolve_references()
    config.checkpoint.keep = 1
    shape = tiny.model_config(config)
    optimizer = make_optimizer(config, shape)
    with jax.set_mesh(stepper.mesh):
        abstract = jax.eval_shape(lambda k: init_state(shape, optimizer, k), jax.random.key(0))
        checkpoints = Checkpoints(copy, config, None)
        state = checkpoints.restore(checkpoints.find(), abstract, stepper.mesh)
        checkpoints.save(state, 12)
        checkpoints.wait()
    step, arrays = restored(copy, stepper)
    assert step == 12
    tiny.assert_equal(
        {n: a for n, a in arrays.items() if n != "step"},
        {n: a for n, a in expected[10].items() if n != "step"},
    )
