"""What a run is told of the parameters that it begins with."""

from collections.abc import Sequence

from model.config import ModelConfig
from model.surgery.change import Change, name_of
from model.surgery.plan import Plan

# Fields that change what the same parameters compute.
FUNCTION = (
    *("attention", "positions", "rotary_base", "window", "logit_cap", "norm", "norm_epsilon"),
    *("mlp", "parallel_blocks"),
)
_SHOWN = 4  # names in a line


def report(
    plan: Plan, errors: Sequence[float | None], old: ModelConfig, new: ModelConfig
) -> list[str]:
    """Returns lines on what was changed, what is new and what was left; none where all fits.

    Args:
      plan: that was carried out.
      errors: of its changes, as ``transfer`` returns them.
      old: the config of the saved network.
      new: of the run's.
    """
    groups: dict[str, list[tuple[Change, float | None]]] = {}
    for change, error in zip(plan.changed, errors, strict=True):
        groups.setdefault(change.how, []).append((change, error))
    lines = []
    for how, changes in groups.items():
        if not how:
            continue
        made = [one for change, _ in changes for one in change.made]
        worst = max((error for _, error in changes if error is not None), default=None)
        exact = "" if worst is None else f"; relative error {worst:.2g}"
        lines.append(f"{how}{exact}: {_count([(name_of(d)[0], d.size) for d in made])}")
    if plan.new:
        lines.append(f"new: {_count([(name_of(d)[0], d.size) for d in plan.new])}")
    if plan.left:
        left = [(f.name, sum(stack.size for stack in f.stacks)) for f in plan.left]
        lines.append(f"left: {_count(left)}")
    if lines:
        same = [*plan.same, *(one for change, _ in groups.get("", []) for one in change.made)]
        names, size = {name_of(one)[0] for one in same}, sum(one.size for one in same)
        lines = [f"parameters as they were: {len(names)} ({size:,} elements)"] + lines
    if old.param_dtype != new.param_dtype:
        lines.append(f"cast from {old.param_dtype} to {new.param_dtype}")
    differing = [name for name in FUNCTION if getattr(old, name) != getattr(new, name)]
    if differing:
        listed = (f"model.{n} {getattr(old, n)!r} -> {getattr(new, n)!r}" for n in differing)
        lines.append(f"the same parameters compute otherwise: {', '.join(listed)}")
    return [f"  {line}" for line in lines]


def _count(parameters: Sequence[tuple[str, int]]) -> str:
    """Returns names and the number of elements, as "a.b, .c and 3 more (12,345 elements)"."""
    names = list(dict.fromkeys(name for name, _ in parameters))
    modules = [name.rpartition(".")[0] for name in names]
    shown = names[:1]
    for i in range(1, min(len(names), _SHOWN)):  # a module is named once
        again = modules[i] and modules[i] == modules[i - 1]
        shown.append(names[i][len(modules[i]) :] if again else names[i])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(shown)}{more} ({sum(size for _, size in parameters):,} elements)"
