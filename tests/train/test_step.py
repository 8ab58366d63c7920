"""The compiled step: microbatches, several steps in a call, the loss, dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from model.parameter import named_arrays
from tests.model import small
from tests.train import tiny
from train.batches import Batch
from train.numbers import Numbers
from train.step import gradient

SHAPE = small.config(embed_dim=8, num_heads=2, num_kv_heads=2, head_dim=4, mlp="none", num_layers=1)
ROWS = 8


def batch(counted=None, rows=ROWS, seed=1):
    tokens = small.tokens(SHAPE, rows + 1, seed=seed)
    whole = np.ones((rows, small.LENGTH), bool) if counted is None else counted
    return jax.tree.map(jnp.asarray, Batch(tokens[:-1], tokens[1:], whole))


@functools.cache
def compiled(accumulate):
    return jax.jit(lambda model, batch, z, key: gradient(model, batch, z, key, accumulate))


def gradients(model, batch, accumulate=1, z=0.0, seed=0):
    """Returns the gradients by name, and the loss."""
    found, loss = compiled(accumulate)(model, batch, jnp.float32(z), jax.random.key(seed))
    return {n: np.asarray(g) for n, g in named_arrays(found).items()}, float(loss)


def uneven():
    """Returns where to count: rows with all, some and none of their labels."""
    counted = np.random.default_rng(2).random((ROWS, small.LENGTH)) < 0.4
    counted[0], counted[3], counted[5] = True, False, False
    return counted


def test_the_loss_is_the_mean_over_counted_labels():
    model, rows = small.drawn(SHAPE), batch(uneven())
    logits = small.true_logits(model, rows.tokens).astype(float)
    chosen = np.take_along_axis(log_softmax(logits, -1), np.asarray(rows.labels)[..., None], -1)
    _, loss = gradients(model, rows)
    np.testing.assert_allclose(loss, -chosen[..., 0][uneven()].mean(), rtol=0, atol=1e-5)


def test_labels_that_do_not_count_have_no_influence():
    model, rows = small.drawn(SHAPE), batch(uneven())
    other = jnp.where(rows.counted, rows.labels, (rows.labels + 1) % SHAPE.vocab_size)
    tiny.assert_equal(gradients(model, rows)[0], gradients(model, rows._replace(labels=other))[0])


def test_a_batch_in_which_nothing_counts_moves_nothing():
    found, loss = gradients(small.drawn(SHAPE), batch(np.zeros((ROWS, small.LENGTH), bool)))
    assert loss == 0
    assert all((g == 0).all() for g in found.values())


@pytest.mark.parametrize("counted", [None, uneven()], ids=["all count", "uneven"])
def test_microbatches_add_up_to_the_whole_batch(counted):
    model, rows = small.drawn(SHAPE), batch(counted)
    expected, loss = gradients(model, rows, z=0.1)
    found, found_loss = gradients(model, rows, accumulate=4, z=0.1)
    assert abs(found_loss - loss) < 1e-6
    for name, value in expected.items():
        assert np.abs(value).max() > 1e-4, name
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-6, err_msg=name)


def test_the_z_loss_moves_parameters_and_not_the_reported_loss():
    model, rows = small.drawn(SHAPE), batch()
    plain, loss = gradients(model, rows)
    found, found_loss = gradients(model, rows, z=0.1)
    assert found_loss == loss
    # The slope of the reported loss plus 0.1 times the mean squared normaliser, along a line.
    along = np.random.default_rng(0).standard_normal(plain["unembedding"].shape)

    def mean_square(shift):
        moved = {n: np.asarray(a) for n, a in named_arrays(model).items()}
        moved["unembedding"] = (moved["unembedding"] + shift * along).astype(np.float32)
        leaves = [jnp.asarray(a) for a in moved.values()]
        logits = small.true_logits(
            jax.tree.unflatten(jax.tree.structure(model), leaves), rows.tokens
        )
        return (logsumexp(logits.astype(float), -1) ** 2).mean()

    slope = 0.1 * (mean_square(1e-2) - mean_square(-1e-2)) / 2e-2
    difference = ((found["unembedding"] - plain["unembedding"]) * along).sum()
    np.testing.assert_allclose(difference, slope, rtol=1e-3)


def test_padding_of_the_vocabulary_has_no_gradient():
    found, _ = gradients(small.drawn(SHAPE), batch(), z=0.1)
    for name in ("unembedding", "embedding"):
        assert (found[name][SHAPE.vocab_size :] == 0).all()
    # Every true word competes; only words that were read moved the embedding.
    assert (np.abs(found["unembedding"][: SHAPE.vocab_size]).max(1) > 0).all()


def test_several_steps_in_a_call_equal_single_calls_bit_for_bit():
    stepper, start = tiny.on_one_device()
    together, expected = stepper.call(start, 5)
    state, singly = start, []
    for _ in range(5):
        state, values = stepper.call(state, 1)
        singly.append(values)
    for name, values in expected.items():
        np.testing.assert_array_equal(values, [v[name][0] for v in singly], err_msg=name)
    tiny.assert_equal(tiny.arrays(state), tiny.arrays(together))
    assert int(state.step) == 5


@pytest.mark.parametrize("cuts", [(2, 3), (3, 1, 1), (4, 1)], ids=str)
def test_a_call_that_is_cut_short_takes_the_same_steps(cuts):
    stepper, start = tiny.on_one_device()
    expected, _ = stepper.call(start, 5)
    state = start
    for count in cuts:
        state, values = stepper.call(state, count)
        assert len(values["loss"]) == count
    tiny.assert_equal(tiny.arrays(state), tiny.arrays(expected))


def test_a_run_learns_and_reports_its_rates():
    stepper, start = tiny.on_one_device()
    _, values = stepper.call(start)
    # Before the first step every word is about equally likely.
    assert abs(values["loss"][0] - np.log(65)) < 0.1
    np.testing.assert_allclose(values["learning_rate"][:3], [0.01 / 3, 0.02 / 3, 0.01], rtol=1e-6)
    # The norm that is reported is the one before clipping.
    clipped = Numbers.of(stepper.config)._replace(clip=jnp.float32(1e-6))
    norms = stepper.call(start, 1, clipped)[1]["grad_norm"]
    np.testing.assert_array_equal(norms, values["grad_norm"][:1])
    assert norms > 1e-3
    _, losses = stepper.losses(start, 60)
    assert losses[-5:].mean() < losses[:5].mean() - 0.05


def test_master_weights_take_steps_that_narrow_ones_cannot_and_are_averaged():
    """A step of 2^-12 is lost in the 8 bits of a gain of 1, and is not in its float32 weight."""
    changes = {
        "model.param_dtype": "bfloat16",
        "model.num_layers": 1,
        "model.mlp": "none",
        "steps_per_call": 3,
        "optim.name": "lion",  # moves by the learning rate, whatever the gradient
        "optim.learning_rate": 2.0**-12,
        "optim.schedule": "constant",
        "optim.warmup_steps": 0,
        "optim.weight_decay": 0.0,
        "optim.master_weights": True,
        "optim.ema": 0.2,
    }
    stepper = tiny.Stepper(tiny.config(changes), tiny.mesh())
    state = stepper.start()
    average = {name: np.asarray(a, float) for name, a in state.master.items()}
    for kept in (1 / 10, 2 / 11, 0.2):
        state, _ = stepper.call(state, 1)
        average = {
            n: kept * a + (1 - kept) * np.asarray(state.master[n]) for n, a in average.items()
        }
    for name, array in named_arrays(state.model).items():
        assert array.dtype == jnp.bfloat16
        assert (array == state.master[name].astype(jnp.bfloat16)).all(), name
        np.testing.assert_allclose(state.ema[name], average[name], rtol=0, atol=1e-6, err_msg=name)
    assert (named_arrays(state.model)["norm.gain"] == 1).all()
    assert set(np.asarray((state.master["norm.gain"] - 1) * 2**12)) <= {-3.0, -1.0, 1.0, 3.0}
    assert all(leaf.dtype == jnp.float32 for leaf in state.optimizer["lion"].mu.values())


def dropping(seed):
    config = tiny.config({"model.dropout": 0.5, "model.num_layers": 1, "model.mlp": "none"})
    config.steps_per_call, config.seed = 2, seed
    return tiny.Stepper(config, tiny.mesh())


def test_dropout_depends_on_the_step_and_the_seed_alone():
    stepper = dropping(seed=0)
    start, rows = stepper.start(), stepper.batches(0)
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0], leaf[0]]), rows)
    still = Numbers.of(stepper.config)._replace(learning_rate=jnp.float32(0))
    after, values = stepper.call(start, 2, still, same)
    # Nothing moved and the batch was the same: only the step was another.
    before = {n: np.asarray(a) for n, a in named_arrays(start.model).items()}
    tiny.assert_equal({n: np.asarray(a) for n, a in named_arrays(after.model).items()}, before)
    assert abs(values["loss"][0] - values["loss"][1]) > 1e-5
    again = stepper.call(start, 2, still, same)[1]
    np.testing.assert_array_equal(again["loss"], values["loss"])
    later = dataclasses.replace(start, step=start.step + 1)
    found = stepper.call(later, 1, still, same)[1]
    np.testing.assert_array_equal(found["loss"], values["loss"][1:])
    other = dropping(seed=1).call(start, 2, still, same)[1]
    assert abs(other["loss"][0] - values["loss"][0]) > 1e-5


def test_microbatches_drop_out_differently():
    shape = small.changed(SHAPE, dropout=0.5)
    model = small.replaced(small.drawn(SHAPE), shape)
    row = batch(rows=1)
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), row)
    _, one_at_a_time = gradients(model, twice, accumulate=2)
    alone = [
        float(compiled(1)(model, row, jnp.float32(0), key)[1])
        for key in jax.random.split(jax.random.key(0), 2)
    ]
    assert alone[0] != alone[1]
    np.testing.assert_allclose(one_at_a_time, np.mean(alone), rtol=1e-6)


def test_two_runs_at_once_equal_two_runs():
    stepper, start = tiny.on_one_device()
    given, rates = Numbers.of(stepper.config), jnp.array([0.01, 0.03], jnp.float32)
    batches = stepper.batches(0)

    def run(rate):
        own = given._replace(learning_rate=rate)
        return stepper.step(start, batches, jnp.int32(5), own)[1]["loss"]

    with jax.set_mesh(stepper.mesh):
        together = jax.jit(jax.vmap(run))(rates)
    for rate, losses in zip(rates, together, strict=True):
        own = given._replace(learning_rate=rate)
        expected = stepper.call(start, 5, own)[1]["loss"]
        np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    assert abs(together[0][-1] - together[1][-1]) > 1e-3


def test_numbers_and_counts_compile_nothing_new():
    config = tiny.config({"model.num_layers": 1, "model.mlp": "none", "steps_per_call": 2})
    stepper = tiny.Stepper(config, tiny.mesh())
    state = stepper.start()
    with jax.set_mesh(stepper.mesh):
        for changes in ({}, {"optim.learning_rate": 0.5, "steps": 99}, {"optim.clip": 0.0}):
            for count in (1, 2):
                given = Numbers.of(tiny.config(changes))
                batches = stepper.batches(int(state.step))
                state, _ = stepper.step(state, batches, jnp.int32(count), given)
    assert int(state.step) == 9
    assert stepper.step._cache_size() == 1
