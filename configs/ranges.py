"""The ranges of fields: one table, and the sentence for a value outside."""

import ctypes
import math
from collections.abc import Callable, Mapping
from typing import Any

from configs.errors import UserError, nearest

MOST_STEPS = 2**31 - 1

# What a value must do, whether it does, and the fields of which that is asked. A field that
# may be None is checked where it is not; numbers with a point as the float32 that they become.
RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "be at least 1",
        lambda value: value >= 1,
        (
            *("steps", "batch_size", "length", "steps_per_call"),
            *("data.prefetch", "optim.accumulate", "checkpoint.keep", "log.every"),
            *("accidents.limit", "sample.tokens"),
        ),
    ),
    (
        "be at least 1 and below 2**29: a square matrix of that width would take an exabyte",
        lambda value: 1 <= value < 2**29,
        ("model.embed_dim",),
    ),
    (
        "be at least 1 and below 2**31",
        lambda value: 1 <= value < 2**31,
        (
            *("model.num_layers", "model.num_heads", "model.num_kv_heads", "model.head_dim"),
            *("model.value_dim", "model.mlp_dim", "model.vocab_size", "model.max_length"),
        ),
    ),
    (
        "be at least 2: of fewer there is no deviation; and at most a million",
        lambda value: 2 <= value <= 10**6,
        ("accidents.window",),
    ),
    (
        "be at least 1, or None",
        lambda value: value >= 1,
        ("loss_chunk", "checkpoint.restore_layers"),
    ),
    (
        f"be at most {MOST_STEPS:,}: a step's number has 32 bits on the device",
        lambda value: value <= MOST_STEPS,
        ("steps",),
    ),
    (
        "be at least 0",
        lambda value: value >= 0,
        (
            *("optim.warmup_steps", "checkpoint.every", "checkpoint.keep_every"),
            *("log.eval_every", "log.eval_batches"),
            *("accidents.skip_before", "accidents.skip_after"),
        ),
    ),
    ("be at least 0 and below 2^32 - 1", lambda value: 0 <= value < 2**32 - 1, ("seed",)),
    (
        "be at least 0 and below 1",
        lambda value: 0 <= value < 1,
        ("model.dropout", "optim.b1", "optim.b2", "optim.muon_momentum", "optim.ema"),
    ),
    (
        "lie between 0 and 1",
        lambda value: 0 <= value <= 1,
        ("optim.final_fraction", "optim.decay_fraction"),
    ),
    (
        "be at least 0, and finite in float32",
        lambda value: 0 <= value < math.inf,
        (
            *("optim.learning_rate", "optim.muon_learning_rate", "optim.weight_decay"),
            *("optim.clip", "optim.z_loss", "sample.temperature"),
            *("accidents.spike", "accidents.gradient_spike", "checkpoint.minutes"),
        ),
    ),
    (
        "be positive and finite in float32",
        lambda value: 0 < value < math.inf,
        ("model.rotary_base", "model.norm_epsilon", "optim.eps"),
    ),
    (
        "be positive and finite in float32, or None",
        lambda value: 0 < value < math.inf,
        ("model.logit_cap",),
    ),
    (
        "hold None or sizes of at least 1 and below 2**31 tokens, such as (None, 256)",
        lambda value: bool(value) and all(size is None or _is_size(size) for size in value),
        ("model.window",),
    ),
    (
        "multiply by numbers of at least 0, finite in float32",
        lambda value: all(0 <= _rounded(x) < math.inf for _, *pair in value for x in pair),
        ("optim.multipliers",),
    ),
    (
        "be a first and a last step, such as (100, 102), or ()",
        lambda value: not value or (len(value) == 2 and 1 <= value[0] <= value[1]),
        ("log.profile",),
    ),
)

_FLOATS = ("float32", "bfloat16")

# The words that a field may be; where there is a colon in ``model.mlp``, it names a class.
CHOICES: dict[str, tuple[str, ...]] = {
    "model.attention_backend": ("auto", "dense", "pieces", "blockwise", "splash", "cudnn"),
    "model.value_map": ("factored", "full"),
    "model.positions": ("learned", "rotary", "none"),
    "model.norm": ("layernorm", "rmsnorm"),
    "model.mlp": ("gelu_tanh", "gelu_erf", "swiglu", "none", "module:Class"),
    "model.remat": ("none", "block", "matmuls", "offload"),
    "model.dtype": _FLOATS,
    "model.param_dtype": _FLOATS,
    "model.accumulation_dtype": _FLOATS,
    "model.reduce_dtype": _FLOATS,
    "model.gradient_reduce_dtype": _FLOATS,
    "mesh.residual": ("replicated", "sharded"),
    "mesh.context_attention": ("auto", "all_to_all", "ring"),
    "accidents.policy": ("stop", "skip", "rollback"),
    "optim.schedule": ("cosine", "linear", "warmup_stable_decay", "constant"),
}


def check_ranges(values: Mapping[str, Any]) -> None:
    """Checks well-typed values of fields by their dotted names; those without a range pass.

    Raises:
      UserError: a value is out of its range.
    """
    for words, fits, names in RANGES:
        for name in names:
            value = values.get(name)
            if value is not None and not fits(_rounded(value)):
                field = name if "." in name else f"config.{name}"
                raise UserError(f"{field} = {value!r} must {words}.")
    for name, choices in CHOICES.items():
        value = values.get(name)
        own = name == "model.mlp" and ":" in str(value)
        if value is not None and value not in choices and not own:
            raise UserError(
                f"{name} cannot be {value!r}{nearest(str(value), choices)}; choose one of "
                f"{', '.join(choices)}."
            )


def _is_size(value: int) -> bool:
    return 1 <= value < 2**31


def _rounded(value: Any) -> Any:
    """Returns a float as the float32 that the step computes with."""
    return ctypes.c_float(value).value if isinstance(value, float) else value
