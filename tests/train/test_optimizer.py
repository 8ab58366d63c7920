"""AdamW, Lion and Adafactor against NumPy or optax's own; numbers are arguments of all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.errors import UserError
from model.parameter import by_name
from tests.train import own_updates, tiny
from tests.train.updates import (
    KINDS,
    SHAPES,
    declared,
    drawn,
    network,
    numbers,
    optimizer_of,
    take,
    taking,
)
from train.numbers import Numbers
from train.optimizer import NAMES

STEPS = 4


def updated(name, given, shapes=SHAPES, steps=STEPS, **optim):
    """Returns parameters after some steps."""
    optimizer = optimizer_of(name, declared(shapes), **optim)
    arrays = jax.tree.map(jnp.asarray, drawn(shapes, 0))
    state, update = optimizer.init(arrays), taking(optimizer)
    for step in range(steps):
        gradients = jax.tree.map(jnp.asarray, drawn(shapes, 1 + step))
        arrays, state = update(gradients, state, arrays, given, jnp.int32(step))
    return jax.tree.map(np.asarray, arrays)


def by_hand(rule, rates, clip=0.0, decay=0.0):
    """Returns parameters that ``rule(gradient, memory, t)`` moves."""
    arrays = {name: value.astype(np.float64) for name, value in drawn(SHAPES, 0).items()}
    memory = {name: [0.0, 0.0] for name in arrays}
    for step, rate in enumerate(rates):
        gradients = drawn(SHAPES, 1 + step)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
        for name, gradient in gradients.items():
            if clip and norm > clip:
                gradient = gradient * (clip / norm)
            move = rule(gradient, memory[name], step + 1)
            # Gains and biases never decay.
            own = decay if name in ("weight", "table", "out") else 0.0
            arrays[name] = arrays[name] - rate * (move + own * arrays[name])
    return arrays


def assert_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerance)


@pytest.mark.parametrize("clip", [0.0, 3.0, 1e6])
def test_adamw_by_hand(clip):
    b1, b2, eps = 0.8, 0.95, 1e-3

    def rule(gradient, memory, t):
        memory[0] = b1 * memory[0] + (1 - b1) * gradient
        memory[1] = b2 * memory[1] + (1 - b2) * gradient**2
        return memory[0] / (1 - b1**t) / (np.sqrt(memory[1] / (1 - b2**t)) + eps)

    given = numbers(learning_rate=0.05, b1=b1, b2=b2, eps=eps, weight_decay=0.3, clip=clip)
    found = updated("adamw", given)
    assert_close(found, by_hand(rule, [0.05] * STEPS, clip, decay=0.3), rtol=0, atol=2e-6)


def test_lion_by_hand():
    b1, b2 = 0.9, 0.7

    def rule(gradient, memory, t):
        move = np.sign(b1 * memory[0] + (1 - b1) * gradient)
        memory[0] = b2 * memory[0] + (1 - b2) * gradient
        return move

    found = updated("lion", numbers(learning_rate=0.02, b1=b1, b2=b2, weight_decay=0.5))
    expected = by_hand(rule, [0.02] * STEPS, clip=1.0, decay=0.5)
    assert_close(found, expected, rtol=0, atol=2e-6)


def test_adafactor_equals_the_ready_made_one():
    # Sides of 128 and more are factored, shorter ones are not.
    shapes = SHAPES | {"weight": (128, 130)}
    given = numbers(learning_rate=0.03, weight_decay=0.0, clip=0.0)
    found = updated("adafactor", given, shapes)
    ready_made = optax.adafactor(learning_rate=0.03)
    arrays = drawn(shapes, 0)
    state = ready_made.init(arrays)
    for step in range(STEPS):
        moves, state = ready_made.update(drawn(shapes, 1 + step), state, arrays)
        arrays = optax.apply_updates(arrays, moves)
    assert_close(found, arrays, rtol=0, atol=1e-6)
    decayed = updated("adafactor", numbers(learning_rate=0.03, clip=0.0), shapes, steps=1)
    plain = updated("adafactor", given, shapes, steps=1)
    change = {name: 0.03 * 0.1 * drawn(shapes, 0)[name] for name in ("weight", "table", "out")}
    for name in shapes:
        expected = plain[name] - change.get(name, 0)
        np.testing.assert_allclose(decayed[name], expected, rtol=0, atol=1e-6, err_msg=name)


def test_the_schedule_scales_the_rate_of_every_step():
    given = Numbers.of(tiny.config({"steps": 10, "optim.warmup_steps": 4, "optim.b1": 0.0}))
    found = updated("lion", given, schedule="linear")
    rates = [0.01 * k / 4 for k in (1, 2, 3, 4)]
    expected = by_hand(lambda g, memory, t: np.sign(g), rates, decay=0.1)
    assert_close(found, expected, rtol=0, atol=2e-6)


def after_steps(name, declared, arrays, gradients):
    """Returns parameters after an update with each of the gradients."""
    optimizer = optimizer_of(name, declared)
    state, update = jax.jit(optimizer.init)(arrays), taking(optimizer)
    for step, gradient in enumerate(gradients):
        arrays, state = update(gradient, state, arrays, numbers(), jnp.int32(step))
    return {name: np.asarray(value) for name, value in arrays.items()}


# Wide enough for Adafactor to factor a matrix in a block.
WIDE = {"model.embed_dim": 128, "model.head_dim": 128, "model.value_dim": 4, "model.mlp": "none"}


def test_adafactor_takes_each_layer_alone():
    """One stack of two layers and two stacks of one are the same network."""
    fields = WIDE | {"model.num_heads": 1}
    stacked, (arrays, *gradients) = network(fields)
    alone, _ = network(fields | {"model.window": (None, None)})

    def apart(tree):
        found = {}
        for d in stacked:
            for i in range(2):
                layer = slice(i, i + 1) if "layers" in d.axes else slice(None)
                found[d.path.replace("blocks.0", f"blocks.{i}")] = tree[d.path][layer]
        return found

    # Layers of unlike size would share one norm.
    for tree in (arrays, *gradients):
        tree.update({d.path: tree[d.path].at[0].mul(9) for d in stacked if "layers" in d.axes})
    together = after_steps("adafactor", stacked, arrays, gradients)
    expected = after_steps("adafactor", alone, apart(arrays), map(apart, gradients))
    assert_close(apart(together), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adafactor", f"{own_updates.__name__}:whitened"])
def test_what_reaches_across_shards_equals_no_mesh(name):
    fields = WIDE | {"model.num_layers": 1}

    def steps(**axes):
        declared, (arrays, *gradients) = network(fields, **axes)
        return after_steps(name, declared, arrays, gradients)

    with jax.set_mesh(tiny.mesh(fsdp=2, heads=4)):
        found = steps(fsdp=2, heads=4)
    assert_close(found, steps(), rtol=1e-5, atol=1e-6)


def test_multipliers_scale_the_rate_and_the_decay_of_what_they_match():
    patterns = (("*t*", 3.0, 0.5), ("weight", 0.1, 0.0), ("gain", 0.0, 1.0))
    given = numbers(learning_rate=0.02, weight_decay=0.5, b1=0.0, clip=0.0, multipliers=patterns)
    found = updated("lion", given, steps=1, multipliers=patterns)
    factors = {"weight": (0.3, 0.0), "table": (3.0, 0.5), "out": (3.0, 0.5), "gain": (0.0, 0.0)}
    for name, start in drawn(SHAPES, 0).items():
        rate, decay = factors.get(name, (1.0, 0.0))
        move = np.sign(drawn(SHAPES, 1)[name]) + 0.5 * decay * start
        np.testing.assert_allclose(found[name], start - 0.02 * rate * move, rtol=0, atol=1e-6)
    with pytest.raises(
        UserError, match=r"optim.multipliers: no parameter is like 'wait'; .*weight"
    ):
        updated("lion", given, multipliers=(("weight", 1.0, 1.0), ("wait", 1.0, 1.0)))


def test_an_optimizer_of_one_s_own_is_clipped_decayed_and_scaled():
    given = numbers(learning_rate=0.02, b1=0.6, weight_decay=0.5, clip=1.5)
    found = updated(f"{own_updates.__name__}:heavy_ball", given)

    def rule(gradient, memory, t):
        memory[0] = 0.6 * memory[0] + gradient
        return memory[0]

    expected = by_hand(rule, [0.02] * STEPS, clip=1.5, decay=0.5)
    assert_close(found, expected | {"gain": drawn(SHAPES, 0)["gain"]}, rtol=0, atol=1e-6)


def test_an_optimizer_of_one_s_own_sees_each_layer_alone():
    shapes = {"stack": (3, 6, 4), "gain": (4,)}
    arrays, gradients = (jax.tree.map(jnp.asarray, drawn(shapes, seed)) for seed in (0, 1))
    optimizer = optimizer_of(f"{own_updates.__name__}:trusted", declared(shapes))
    given = numbers(learning_rate=0.02, weight_decay=0.0, clip=0.0)
    after, _ = taking(optimizer)(gradients, optimizer.init(arrays), arrays, given, jnp.int32(0))
    for layer in range(3):
        start, slope = (np.asarray(tree["stack"][layer]) for tree in (arrays, gradients))
        trust = np.linalg.norm(start) / np.linalg.norm(slope)
        expected = start - 0.02 * trust * slope
        np.testing.assert_allclose(after["stack"][layer], expected, rtol=0, atol=1e-6)


def test_an_optimizer_of_one_s_own_may_span_all_parameters():
    shapes = SHAPES | {"stack": (3, 6, 4)}
    given = numbers(learning_rate=0.02, b1=0.6, weight_decay=0.0, clip=0.0)
    found = updated(f"{own_updates.__name__}:spanning", given, shapes)

    arrays, memory = drawn(shapes, 0), dict.fromkeys(shapes, 0.0)
    for step in range(STEPS):
        slopes = drawn(shapes, 1 + step)
        norm = np.sqrt(sum((slope.astype(float) ** 2).sum() for slope in slopes.values()))
        for name, slope in slopes.items():
            memory[name] = 0.6 * memory[name] + slope * min(1, 0.5 / norm)
            arrays[name] = arrays[name] - 0.02 * memory[name]
    assert_close(found, arrays, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("shortened", r"gives b NoneType; return \(4,\)"),
        ("missing", "cannot be imported .AttributeError"),
        ("number", "cannot be called; name a class or a function"),
        ("nothing", "returned NoneType; return an optax.GradientTransformation"),
        ("lonely", "is called with 2 arguments .too many positional arguments"),
    ],
)
def test_an_optimizer_of_one_s_own_that_is_none_is_refused_by_name(function, sentence):
    name = f"{own_updates.__name__}:{function}"
    with pytest.raises(UserError, match=f"optim.name = '{name}' {sentence}"):
        updated(name, numbers())


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("adamw", "adamw.count adamw.mu.{all} adamw.nu.{all}"),
        ("lion", "lion.count lion.mu.{all}"),
        (
            "adafactor",
            "adafactor.0.count adafactor.0.v.{all} adafactor.0.v_col.{all} adafactor.0.v_row.{all}",
        ),
        (
            "muon",
            "adamw.count adamw.mu.{rest} adamw.nu.{rest} "
            "muon.0.count muon.0.mu.{matrices} muon.0.ns_coeffs",
        ),
    ],
)
def test_states_have_the_names_that_saved_ones_have(name, names):
    matrices = {n for n in SHAPES if KINDS[n] == "matrix"}
    groups = {"all": SHAPES, "matrices": matrices, "rest": SHAPES.keys() - matrices}
    expected = set()
    for form in names.split():
        group = next((g for g in groups if form.endswith(f"{{{g}}}")), None)
        expected |= {form.format(**{group: m}) for m in groups[group]} if group else {form}
    state = optimizer_of(name, declared()).init(jax.tree.map(jnp.asarray, drawn(SHAPES, 0)))
    assert by_name(state).keys() == expected


@pytest.mark.parametrize("name", [*NAMES, f"{own_updates.__name__}:heavy_ball"])
def test_two_rates_at_once_equal_two_runs(name):
    rates = jnp.array([0.01, 0.1], jnp.float32)
    shapes = SHAPES | {"stack": (3, 6, 4)}
    optimizer = optimizer_of(name, declared(shapes), schedule="cosine")
    arrays = jax.tree.map(jnp.asarray, drawn(shapes, 0))
    gradients = jax.tree.map(jnp.asarray, drawn(shapes, 1))
    state = optimizer.init(arrays)

    def one(rate):
        given = numbers()._replace(learning_rate=rate, muon_learning_rate=rate)
        return take(optimizer, gradients, state, arrays, given, jnp.int32(1))

    together, single = jax.jit(jax.vmap(one))(rates), jax.jit(one)
    for i, rate in enumerate(rates):
        for found, expected in zip(
            jax.tree.leaves(together), jax.tree.leaves(single(rate)), strict=True
        ):
            np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_changing_a_number_changes_the_step_and_compiles_nothing(name):
    optimizer = optimizer_of(name, declared(), schedule="warmup_stable_decay")
    arrays = jax.tree.map(jnp.asarray, drawn(SHAPES, 0))
    gradients = jax.tree.map(jnp.asarray, drawn(SHAPES, 1))
    state = optimizer.init(arrays)
    update = taking(optimizer)
    # Step 17 of 20 is in the decay.
    plain = numbers()
    expected = update(gradients, state, arrays, plain, jnp.int32(17))
    leaves, tree = jax.tree.flatten(plain)
    moved = 0
    for i in range(len(leaves)):
        changed = tree.unflatten([*leaves[:i], leaves[i] * 0.5 + 0.01, *leaves[i + 1 :]])
        found = update(gradients, state, arrays, changed, jnp.int32(17))
        moved += any(
            bool((np.asarray(a) != np.asarray(b)).any())
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
        )
    assert update._cache_size() == 1
    # The learning rate, the weight decay, the clip and the schedule's numbers reach all.
    assert moved >= 5


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_parameters_and_their_state_stay_bfloat16(name):
    optimizer = optimizer_of(name, declared())
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), drawn(SHAPES, 0))
    state = optimizer.init(arrays)
    given = numbers(learning_rate=0.1, muon_learning_rate=0.1)
    after, state_after = taking(optimizer)(arrays, state, arrays, given, jnp.int32(0))
    assert {array.dtype for array in after.values()} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(jnp.result_type, state_after) == jax.tree.map(jnp.result_type, state)
    assert all((after[name] != arrays[name]).any() for name in after)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="optim.name = 'adam'.*did you mean 'adamw'"):
        optimizer_of("adam", declared())
