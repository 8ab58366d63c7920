"""The validated shape of a network."""

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from configs.errors import UserError, nearest

VOCAB_MULTIPLE = 128  # padding of the vocabulary; independent of the mesh

_CHOICES = {
    "value_map": ("factored", "full"),
    "positions": ("learned", "rotary", "none"),
    "norm": ("layernorm", "rmsnorm"),
    "mlp": ("gelu_tanh", "gelu_erf", "swiglu", "none"),
    "remat": ("none", "block", "matmuls"),
    "dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
    "accumulation_dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and arithmetic of a network, complete and checked.

    Built from ``config.model`` by ``from_config``; no field is None that need not be.

    Attributes:
      embed_dim: D, width of the residual stream.
      num_layers: L, blocks.
      num_heads: H, query heads of a block.
      num_kv_heads: G, key/value heads; divides H. 1 is multi-query attention.
      head_dim: K, width of queries and keys.
      value_dim: R, rank of a head's factored value map.
      mlp_dim: F, hidden width of the MLP.
      vocab_size: V, the true number of tokens.
      max_length: longest sequence in tokens; rows of the table of learned positions.
      attention: the attention variant, "multihead" or "module:Class".
      attention_backend: who computes the attention pattern; "auto" leaves it to device and shape.
      value_map: "factored" (value_down then value_up) or "full" (one D x D map a head).
      positions: "learned" (added to the embedding), "rotary" (turns queries and keys) or "none".
      rotary_base: wavelength base of rotary positions.
      window: tokens that a query sees, itself included, one entry a layer, repeated over the
        layers; None sees all before it. Its length is the period of the scan.
      query_key_norm: RMSNorm with a gain on each head's queries and keys.
      logit_cap: attention logits become ``cap * tanh(logit / cap)``; None leaves them.
      norm: "layernorm" or "rmsnorm".
      norm_epsilon: added to the variance.
      mlp: activation of the MLP, "gelu_tanh", "gelu_erf" or "swiglu"; "none" is attention only;
        "module:Class" is one of the reader's own.
      parallel_blocks: attention and MLP read the same normed residual.
      biases: biases on queries, keys, values, updates, the MLP and LayerNorm.
      tie_embeddings: the unembedding is the embedding, transposed.
      dropout: probability of zeroing, on the embedding and on each block's updates.
      scan_layers: scan over the stacked blocks, or unroll them; None leaves it to the device.
      remat: what the backward pass recomputes, "none", "block" or "matmuls".
      dtype: of activations and of the operands of matrix products.
      param_dtype: of the parameters.
      accumulation_dtype: of the sums in matrix products, softmax and norms.
    """

    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    mlp_dim: int
    vocab_size: int
    max_length: int
    attention: str = "multihead"
    attention_backend: str = "auto"
    value_map: str = "factored"
    positions: str = "rotary"
    rotary_base: float = 10_000.0
    window: tuple[int | None, ...] = (None,)
    query_key_norm: bool = False
    logit_cap: float | None = None
    norm: str = "rmsnorm"
    norm_epsilon: float = 1e-5
    mlp: str = "gelu_tanh"
    parallel_blocks: bool = False
    biases: bool = False
    tie_embeddings: bool = False
    dropout: float = 0.0
    scan_layers: bool | None = None
    remat: str = "none"
    dtype: str = "float32"
    param_dtype: str = "float32"
    accumulation_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if name == "mlp" and ":" in value:
                continue
            if value not in choices:
                raise UserError(
                    f"model.{name} cannot be {value!r}{nearest(str(value), choices)}; "
                    f"choose one of {', '.join(choices)}."
                )
        sizes = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "value_dim")
        for name in (*sizes, "mlp_dim", "vocab_size", "max_length"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be at least 1.")
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
        if not self.window or any(w is not None and w < 1 for w in self.window):
            raise UserError(
                f"model.window = {self.window} must hold None or sizes of at least 1 token, "
                "such as (None, 256)."
            )
        if self.num_layers % len(self.window):
            raise UserError(
                f"model.window has {len(self.window)} entries, which do not divide "
                f"model.num_layers = {self.num_layers}; change one of them."
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout = {self.dropout} must be at least 0 and below 1.")
        for name in ("rotary_base", "norm_epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"model.{name} = {getattr(self, name)} must be positive, finite.")
        if self.logit_cap is not None and not 0 < self.logit_cap < math.inf:
            raise UserError(f"model.logit_cap = {self.logit_cap} must be positive, or None.")

    @classmethod
    def from_config(cls, model: ConfigDict, vocab_size: int, length: int) -> "ModelConfig":
        """Completes and checks ``config.model``.

        Args:
          model: the section ``model`` of a config.
          vocab_size: the tokenizer's, for ``model.vocab_size = None``.
          length: the run's sequence length, for ``model.max_length = None``.

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
        for name, default in defaults.items():
            if values[name] is None:
                values[name] = default
        config = cls(**values)
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
