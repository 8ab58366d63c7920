"""A search orders settings by an estimate, and compiles no more of them than it must."""

import pytest

from configs import base
from configs.chips import CHIPS
from configs.errors import UserError
from configs.resolved import resolve
from launch.plan.estimate import Setting, estimate, settings
from launch.plan.figures import Figures, Memory, Wire
from launch.plan.search import ALIKE, TooLarge, candidates, search
from model.tally import model_config, tally
from tests.launch.plan.test_on_tpu import planned
from tests.train import tiny

H100 = next(chip for chip in CHIPS if chip.name == "h100")
CONFIG = tiny.config({"batch_size": 32, "mesh.fsdp": 1})
SHAPE = model_config(CONFIG)


def figures(step):
    memory = Memory(1, 1, 0, 1, 1, 1, activations=1, peak=4, available=None)
    wire = [Wire("all-gather", "fsdp", False, 10.0)]
    return Figures(8, {}, 1, memory, 1.0, 1.0, 1.0, 0.0, 1.0, wire, dict(step=step))


@pytest.fixture
def compiler():
    """A compiler that notes what it is given; fewer than four shards do not fit."""
    seen = []

    def compile(config):
        seen.append(config)
        if config.mesh.fsdp < 4:
            raise TooLarge("too large")
        return figures(1 / config.mesh.fsdp + config.optim.accumulate / 100)

    return compile, seen


def test_every_mesh_that_divides_is_a_setting():
    found = list(settings(CONFIG, SHAPE, 8))
    meshes = {one.mesh for one in found}
    assert len(meshes) == 20
    for one in found:
        data, fsdp, heads, _ = one.mesh
        assert 32 // one.accumulate % (data * fsdp) == 0
        assert one.residual == "replicated" or heads > 1


def test_the_fastest_that_fit_are_compiled_and_what_is_known_is_not(tmp_path, compiler):
    compile, seen = compiler
    said = []
    ranked = candidates(CONFIG, SHAPE, 8, H100)
    path = tmp_path / "plans.jsonl"
    tried = search(CONFIG, ranked, compile, 3, path, "h100:8", H100, said.append)
    fit = [one for one in tried if one.figures is not None]
    assert len(fit) == 3
    assert [one.seconds for one in fit] == sorted(one.seconds for one in fit)
    assert tried[: len(fit)] == fit
    assert all(one.setting.mesh[1] >= 4 for one in fit)
    assert len(seen) == len(tried) == len(said) == len(path.read_text().splitlines())
    # A line that was cut off is as if it had not been written.
    path.write_text(path.read_text()[:-20])
    again = search(CONFIG, ranked, compile, 3, path, "h100:8", H100, said.append)
    assert {one.setting for one in again} == {one.setting for one in tried}
    assert len(seen) == len(tried) + 1
    search(CONFIG, ranked, compile, 1, path, "v5p:2x2x2", H100, said.append)
    assert len(seen) > len(tried) + 1


def test_what_no_setting_can_compute_ends_it_with_the_reason(tmp_path):
    seen = []

    def compile(config):
        seen.append(config)
        raise UserError("this backend runs elsewhere.")

    said = []
    ranked = candidates(CONFIG, SHAPE, 8, H100)
    with pytest.raises(UserError, match="this backend runs elsewhere"):
        search(CONFIG, ranked, compile, 3, tmp_path / "plans", "h100:8", H100, said.append)
    assert len(seen) == ALIKE
    assert said[0].endswith("is refused: this backend runs elsewhere.")


def test_a_file_that_cannot_be_read_and_written_is_named_before_the_first_compile(tmp_path):
    ranked = candidates(CONFIG, SHAPE, 8, H100)
    with pytest.raises(UserError, match="cannot be read and written .*name another file by --resu"):
        search(CONFIG, ranked, pytest.fail, 3, tmp_path, "h100:8", H100, print)


def test_its_flags_say_every_field_whatever_the_config_sets():
    """Such as microbatches, of which a config may have more than the best setting."""
    flags = Setting((1, 8, 1, 1), "replicated", "block", 1).flags.split()
    assert len(flags) == 7
    assert {"--config.optim.accumulate=1", "--config.mesh.heads=1"} < {*flags}


def test_more_chips_hold_less_and_recomputing_takes_longer():
    def of(**changes):
        plain = dict(mesh=(1, 1, 1, 1), residual="replicated", remat="matmuls", accumulate=1)
        return estimate(CONFIG, SHAPE, tally(SHAPE, CONFIG.length), Setting(**plain | changes))

    assert of(mesh=(1, 8, 1, 1)).memory < of().memory / 5
    assert of(remat="block").memory < of().memory
    assert of(remat="block").operations == pytest.approx(4 / 3 * of().operations)
    assert of(accumulate=4).memory < of().memory
    assert of().wire == 0
    assert of(mesh=(1, 8, 1, 1)).wire < of(mesh=(1, 8, 1, 1), accumulate=2).wire


def test_what_no_number_of_chips_can_be_says_so():
    with pytest.raises(UserError, match="no mesh of 7 devices divides this config"):
        candidates(CONFIG, SHAPE, 7, H100)
    large = base.get_config()
    large.model.update(dict(embed_dim=12288, num_layers=96, num_heads=96, vocab_size=50257))
    large.batch_size = 8
    large = resolve(large, 50257)
    with pytest.raises(UserError, match=r"no setting fits: the smallest is estimated at .* TB"):
        candidates(large, model_config(large), 2, H100)


@pytest.mark.slow
def test_the_command_names_the_best(tmp_path):
    done, found = planned(
        tmp_path,
        *("--config=configs/toy.py", "--topology=h100:8", "--search", "--settings=2"),
        f"--results={tmp_path}/plans.jsonl",
    )
    assert done.returncode == 0, done.stderr
    best = found["settings"][0]
    assert best["figures"]["seconds"]["step"] <= found["settings"][1]["figures"]["seconds"]["step"]
    assert f"--config.model.remat={best['setting']['remat']}" in done.stdout.splitlines()[-1]
