"""Value maps that change in form or in rank: their factors and biases are made together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax import numpy as jnp
from jaxtyping import Array

from configs.errors import UserError
from model.parameter import Declaration
from model.surgery import value_maps
from model.surgery.change import Change, Family, Rule, refused, regroup_along, without_layers
from model.surgery.resizing import is_repeated
from model.surgery.spread import spread

# What a value map is made of, told by axes; those of the stream's own bias say too little.
_PARTS: dict[tuple[str | None, ...], str] = {
    ("embed", "kv_heads", "value_dim"): "down",
    ("heads", "value_dim", "embed"): "up",
    ("heads", "embed", "update"): "full",
    ("kv_heads", "value_dim"): "bias",
}
_UPDATE_BIAS = "update_bias"

_TINY = 1e-37  # nothing is lost of zeros

Chosen = Callable[[str], bool]


def value_map_change(
    saved: Mapping[str, Family], wanted: Mapping[str, Declaration], chosen: Chosen
) -> Change | None:
    """Returns how a module's value maps change in form or rank; None where they do not.

    Args:
      saved: its parameters by their names in the module.
      wanted: those of one stack of the run's.
      chosen: whether the run takes a parameter, by its path.

    Raises:
      UserError: heads or width differ too, or the run takes one factor and not the other.
    """
    old = _parts({name: family.stacks[0] for name, family in saved.items()})
    new = _parts(wanted)
    before = {part: saved[name] for part, name in old.items()}
    after = {part: wanted[name] for part, name in new.items()}
    factors = {"down", "up"}
    if factors <= after.keys() and (factors <= before.keys() or "full" in before):
        maps = ["down", "up"]
    elif "full" in after and factors <= before.keys():
        maps = ["full"]
    else:
        return None
    if "full" not in {*before, *after} and _rank(before["down"].stacks[0]) == _rank(after["down"]):
        return None
    taken = [part for part in maps if chosen(after[part].path)]
    if not taken:
        return None
    if len(taken) < len(maps):
        raise UserError(
            f"checkpoint.restore_only names {after[taken[0]].path} alone, and the value maps of "
            f"this run differ from the saved ones; name {new['down']} and {new['up']} together."
        )
    source = before["full" if "full" in before else "up"].stacks[0]
    for axis in ("heads", "embed"):
        if source.length(axis) != after[maps[-1]].length(axis):
            raise refused(source, after[maps[-1]])
    after = {part: one for part, one in after.items() if chosen(one.path)}
    if "full" in before:
        return _factored(before, after, new)
    if "full" in after:
        return _multiplied(before, after, old, new)
    return _of_rank(before, after)


def _parts(members: Mapping[str, Declaration]) -> dict[str, str]:
    """Returns the name of each part; of those that two parameters could be, none."""
    found: dict[str, str] = {}
    for name, one in members.items():
        part = "update_bias" if name == _UPDATE_BIAS else _PARTS.get(without_layers(one)[0])
        if part:
            found[part] = "" if part in found else name
    return {part: name for part, name in found.items() if name}


def _rank(down: Declaration) -> int:
    return down.length("value_dim")


def _multiplied(
    before: Mapping[str, Family],
    after: Mapping[str, Declaration],
    old: Mapping[str, str],
    new: Mapping[str, str],
) -> Change:
    made, read = [after["full"]], [before["down"], before["up"]]
    how = f"{new['full']} is {old['down']} {old['up']}"
    moved = {"bias", "update_bias"} <= before.keys() and "update_bias" in after
    if moved:
        made.append(after["update_bias"])
        read += [before["bias"], before["update_bias"]]
        how += (
            f", {new['update_bias']} has what heads write of {old['bias']} where patterns sum to 1"
        )

    def rule(saved: Sequence[Array], fresh: Sequence[Array]) -> tuple[list[Array], Any, Any]:
        del fresh
        down, up, *biases = saved
        results = spread(lambda d, u: (value_maps.full_map(d, u),), "dg_,g_e->gde", down, up)
        if moved:
            bias, update = biases
            results += spread(
                lambda b, u, w: (w + value_maps.written_bias(b, u),),
                "__,__e,e->e",
                bias,
                up,
                update,
            )
        return results, jnp.zeros(()), jnp.zeros(())

    return Change(tuple(made), tuple(read), rule, how)


def _factored(
    before: Mapping[str, Family], after: Mapping[str, Declaration], new: Mapping[str, str]
) -> Change:
    def rule(saved: Sequence[Array], fresh: Sequence[Array]) -> tuple[list[Array], Any, Any]:
        pattern = "g__,_g_->_g_,g__,+,+"
        *results, lost, whole = spread(value_maps.factors, pattern, saved[0], fresh[0])
        return results, lost, whole

    how = f"{new['down']} {new['up']} of the saved full maps by SVD, rank {_rank(after['down'])}"
    return Change((after["down"], after["up"]), (before["full"],), rule, how, approximate=True)


def _of_rank(before: Mapping[str, Family], after: Mapping[str, Declaration]) -> Change:
    names = ["down", "up"] + ["bias"] * ("bias" in before and "bias" in after)
    rank, wanted = _rank(before["down"].stacks[0]), _rank(after["down"])
    groups, others = (x.length("kv_heads") for x in (before["down"].stacks[0], after["down"]))
    narrower = wanted < rank
    how = f"rank {rank} -> {wanted} " + (
        "by SVD" if narrower else "with the same maps: new columns that write nothing yet"
    )
    if groups != others:
        how = f"{groups} key/value heads -> {others}, then {how}"
    return Change(
        tuple(after[name] for name in names),
        tuple(before[name] for name in names),
        _rank_rule(narrower, others if groups != others else None),
        how,
        approximate=narrower or not is_repeated(groups, others),
    )


def _rank_rule(narrower: bool, groups: int | None) -> Rule:
    def rule(saved: Sequence[Array], fresh: Sequence[Array]) -> tuple[list[Array], Any, Any]:
        down, up, *bias = saved
        new, _, *new_bias = fresh
        error = jnp.zeros(())  # its square, relative
        if groups is not None:
            down, lost, whole = regroup_along(1, down, groups)
            bias = [regroup_along(0, b, groups)[0] for b in bias]
            error += lost / jnp.maximum(whole, _TINY)
        # The bias is one more row, which reads a 1.
        down = _with_row(down, bias)
        new = _with_row(new, new_bias)
        if narrower:
            pattern = "_g_,g__,_g_->_g_,g__,+,+"
            down, up, lost, whole = spread(value_maps.narrowed, pattern, down, up, new)
            error += lost / jnp.maximum(whole, _TINY)
        else:
            down, up = spread(value_maps.widened, "_g_,g_e,_g_->_g_,g_e", down, up, new)
        results = [down[:-1], up, down[-1]] if bias else [down, up]
        return results, error, jnp.ones(())

    return rule


def _with_row(matrix: Array, bias: Sequence[Array]) -> Array:
    if not bias:
        return matrix

    def joined(matrix: Array, row: Array) -> tuple[Array]:
        return (jnp.concatenate([matrix, row[None]]),)

    return spread(joined, "_g_,g_->_g_", matrix, bias[0])[0]
