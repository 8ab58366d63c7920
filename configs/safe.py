"""Fields that a run may change when it goes on; the others would make it another run."""

from fnmatch import fnmatchcase

SAFE = (
    "steps",
    "steps_per_call",
    "loss_chunk",
    "host_devices",
    "mesh.*",
    "checkpoint.every",
    "checkpoint.minutes",
    "checkpoint.keep*",
    "accidents.*",
    "log.*",
    "sample.*",
    "data.path",
    "data.cache_dir",
    "data.prefetch",
    "model.attention_backend",
    "model.*reduce_dtype",
    "model.remat",
    "model.scan_layers",
    "optim.learning_rate",
    "optim.muon_learning_rate",
    "optim.schedule",
    "optim.warmup_steps",
    "optim.final_fraction",
    "optim.decay_fraction",
    "optim.weight_decay",
    "optim.b1",
    "optim.b2",
    "optim.eps",
    "optim.clip",
    "optim.muon_momentum",
    "optim.z_loss",
    "optim.multipliers",
    "optim.ema",
)


def is_safe(name: str) -> bool:
    """Tells whether a run may change a field, by its dotted name, and go on."""
    return any(fnmatchcase(name, pattern) for pattern in SAFE)
