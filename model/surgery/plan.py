"""Which saved parameters a network takes, and what becomes of each."""

import dataclasses
from collections.abc import Sequence

from configs.errors import UserError
from model.parameter import Declaration
from model.surgery.change import (
    Change,
    Family,
    Tokens,
    families,
    kept,
    name_of,
    refused,
    resized,
)
from model.surgery.joint import Chosen, value_map_change


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of each parameter of a network, and of each saved one."""

    same: tuple[Declaration, ...]  # read as they are
    changed: tuple[Change, ...]
    new: tuple[Declaration, ...]  # drawn as for a fresh start
    left: tuple[Family, ...]  # saved, and not read


def plan(
    saved: Sequence[Declaration],
    wanted: Sequence[Declaration],
    tokens: Tokens | None = None,
    chosen: Chosen = lambda path: True,
    layers: int | None = None,
) -> Plan:
    """Returns what a network takes of saved parameters.

    Args:
      saved: declarations of the network that was saved.
      wanted: those of the network to begin with.
      tokens: of its vocabulary, where that differs.
      chosen: whether to take a parameter, by its path.
      layers: to take at most, from the first on; None: all that both have.

    Raises:
      UserError: no rule fits a parameter, or there is none to take.
    """
    old, new = families(saved), families(wanted)
    depths = [max(f.layers for f in found.values()) for found in (old, new)]
    count = min(*depths, layers or depths[0])
    made: dict[str, Change | None] = {}  # by path; None is new
    for one in wanted:
        if one.path not in made:
            change = _change(one, old, new, tokens, chosen, count)
            made |= dict.fromkeys([d.path for d in change.made] if change else [one.path], change)
    changes = list({id(change): change for change in made.values() if change}.values())
    if not changes:
        raise UserError(
            "checkpoint.restore_from has no parameter for this run; name another, or other "
            "parameters in checkpoint.restore_only."
        )
    read = {family.name for change in changes for family in change.read}
    same = [change for change in changes if _is_same(change)]
    return Plan(
        same=tuple(one for change in same for one in change.made),
        changed=tuple(change for change in changes if change not in same),
        new=tuple(one for one in wanted if made[one.path] is None),
        left=tuple(family for family in old.values() if family.name not in read),
    )


def _change(
    one: Declaration,
    old: dict[str, Family],
    new: dict[str, Family],
    tokens: Tokens | None,
    chosen: Chosen,
    count: int,
) -> Change | None:
    """Returns how a parameter is made, with those that are made with it; None for a new one."""
    if not chosen(one.path):
        return None
    name, stack = name_of(one)
    picks: tuple[tuple[int, int], ...] = ()
    words: list[str] = []
    if "layers" in one.axes:
        period, before = (max(len(f.stacks) for f in found.values()) for found in (new, old))
        picks = tuple((layer % before, layer // before) for layer in range(stack, count, period))
        if not picks:
            return None
        depths = [max(f.layers for f in found.values()) for found in (old, new)]
        words += _of_layers(count, *depths)
    inside = dict(_members(old, name))
    ours = {local: family.stacks[stack] for local, family in _members(new, name)}
    joint = value_map_change(inside, ours, chosen)
    if joint is not None and one in joint.made:
        return dataclasses.replace(joint, picks=picks, how=", ".join([joint.how, *words]))
    source = old.get(name)
    if source is None and one.kind == "unembedding":  # tied before
        like = (f for f in old.values() if f.stacks[0].kind == "embedding" and f.axes == one.axes)
        source = next(like, None)
        words += [] if source is None else [f"begins as the {source.name}"]
    if source is None:
        return None
    found = resized(source.stacks[0], one, tokens)
    if found is None:
        raise refused(source.stacks[0], one)
    rule, more, approximate = found
    return Change((one,), (source,), rule, ", ".join(more + words), picks, approximate)


def _members(found: dict[str, Family], name: str) -> list[tuple[str, Family]]:
    """Returns the parameters of a parameter's module, by their names in it."""
    module = name.rpartition(".")[0]
    parted = ((*other.rpartition("."), family) for other, family in found.items())
    return [(local, family) for before, _, local, family in parted if before == module]


def _of_layers(taken: int, saved: int, wanted: int) -> list[str]:
    """Returns in words which layers are taken, where not all are."""
    if taken == saved == wanted:
        return []
    first = f"the first {taken} of {saved} layers" if taken < saved else f"all {saved} layers"
    return [f"{first}, {wanted - taken} new" if wanted > taken else first]


def _is_same(change: Change) -> bool:
    """Tells whether a change reads an array as it lies on disk."""
    if change.rule is not kept:
        return False
    (one,), (family,) = change.made, change.read
    if family.name != name_of(one)[0]:
        return False
    stack = next((s for s in family.stacks if s.path == one.path), None)
    if stack is None or stack.shape != one.shape:
        return False
    number = name_of(one)[1]
    return (
        change.picks == tuple((number, i) for i in range(one.length("layers"))) or not change.picks
    )
