"""The validated shape of a network."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from configs.errors import UserError, nearest
from configs.ranges import check_ranges

VOCAB_MULTIPLE = 128  # padding of the vocabulary; independent of the mesh


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and arithmetic of a network, complete and checked.

    Built by ``from_config``. The fields are those of ``configs.base.model``, which says what each
    means; what the config leaves None is filled in here, where it has to be known.
    """

    embed_dim: int  # D
    num_layers: int  # L
    num_heads: int  # H
    num_kv_heads: int  # G
    head_dim: int  # K
    value_dim: int  # R
    mlp_dim: int  # F
    vocab_size: int  # V
    max_length: int
    attention: str
    attention_backend: str
    value_map: str
    positions: str
    rotary_base: float
    window: tuple[int | None, ...]
    query_key_norm: bool
    logit_cap: float | None
    norm: str
    norm_epsilon: float
    mlp: str
    parallel_blocks: bool
    biases: bool
    tie_embeddings: bool
    dropout: float
    scan_layers: bool | None
    remat: str
    dtype: str
    param_dtype: str
    accumulation_dtype: str
    reduce_dtype: str | None
    gradient_reduce_dtype: str | None

    def __post_init__(self) -> None:
        check_ranges({f"model.{name}": value for name, value in vars(self).items()})
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads = {self.num_kv_heads} does not divide model.num_heads = "
                f"{self.num_heads}; choose a divisor."
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(
                f"model.head_dim = {self.head_dim} is odd and rotary positions turn pairs; "
                "make it even or choose other model.positions."
            )
        if self.num_layers % len(self.window):
            raise UserError(
                f"model.window has {len(self.window)} entries, which do not divide "
                f"model.num_layers = {self.num_layers}; change one of them."
            )

    @classmethod
    def from_config(cls, model: ConfigDict, vocab_size: int, length: int) -> "ModelConfig":
        """Completes and checks ``config.model``, for a tokenizer's tokens and a run's sequences.

        Raises:
          UserError: a field is unknown, out of range, or does not fit another.
        """
        if length < 1:
            raise UserError(f"config.length = {length} must be at least 1.")
        names = [field.name for field in dataclasses.fields(cls)]
        for name in model:
            if name not in names:
                raise UserError(f"model.{name} is not a field{nearest(name, names)}.")
        values: dict[str, Any] = {name: model[name] for name in names}
        if values["head_dim"] is None:
            heads = max(values["num_heads"], 1)  # fewer are refused below, with the other sizes
            if values["embed_dim"] % heads:
                raise UserError(
                    f"model.num_heads = {values['num_heads']} does not divide model.embed_dim = "
                    f"{values['embed_dim']}; set model.head_dim or change one of them."
                )
            values["head_dim"] = values["embed_dim"] // heads
        defaults = {
            "num_kv_heads": values["num_heads"],
            "value_dim": values["head_dim"],
            "mlp_dim": 4 * values["embed_dim"],
            "vocab_size": vocab_size,
            "max_length": length,
        }
        unset = {name: default for name, default in defaults.items() if values[name] is None}
        config = cls(**values | unset)
        if config.vocab_size < vocab_size:
            raise UserError(
                f"model.vocab_size = {config.vocab_size} is less than the tokenizer's "
                f"{vocab_size}; raise it or leave it None."
            )
        if length > config.max_length:
            raise UserError(
                f"length = {length} is longer than model.max_length = {config.max_length}; "
                "shorten the sequences or raise the maximum."
            )
        return config

    @property
    def padded_vocab_size(self) -> int:
        """V rounded up to a multiple of 128: the rows of the embedding."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def period(self) -> int:
        """Number of consecutive layers that differ in kind; the scan steps over it."""
        return len(self.window)
