"""The network in float64 NumPy: one sequence, one head and one query at a time.

Written from the design and the docstrings, for reading rather than for speed, so that the
model has something to be compared with that shares no code and no axis order with it.
"""

import math

import numpy as np

from model.config import ModelConfig
from model.parameter import parameters

Weights = dict[str, np.ndarray]


def weights(model) -> Weights:
    """Returns every parameter by its name, in float64."""
    return {
        name: np.asarray(param[...]).astype(np.float64) for name, param in parameters(model).items()
    }


def layer(all_weights: Weights, config: ModelConfig, index: int) -> Weights:
    """Returns the parameters of one layer, named within the block."""
    stack, row = index % len(config.window), index // len(config.window)
    prefix = f"blocks.{stack}."
    return {k.removeprefix(prefix): v[row] for k, v in all_weights.items() if k.startswith(prefix)}


def within(block: Weights, name: str) -> Weights:
    """Returns the parameters of a submodule."""
    return {k.removeprefix(name + "."): v for k, v in block.items() if k.startswith(name + ".")}


def norm(kind: str, epsilon: float, x: np.ndarray, w: Weights) -> np.ndarray:
    """LayerNorm or RMSNorm of one vector."""
    if kind == "layernorm":
        x = x - sum(x) / len(x)
    x = x / math.sqrt(sum(x * x) / len(x) + epsilon)
    return x * w["gain"] + w.get("bias", 0.0)


def turn(x: np.ndarray, position: int, base: float) -> np.ndarray:
    """Turns one query or key, its pairs read as complex numbers."""
    half = len(x) // 2
    pairs = x[:half] + 1j * x[half:]
    angles = np.array([position / base ** (2 * i / len(x)) for i in range(half)])
    pairs = pairs * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag])


def sees(t: int, s: int, window: int | None, segments: np.ndarray | None) -> bool:
    """Whether the query at t sees the key at s."""
    if s > t or (window is not None and s <= t - window):
        return False
    return segments is None or segments[t] == segments[s]


def head_update(
    config: ModelConfig,
    w: Weights,
    x: np.ndarray,
    positions: np.ndarray,
    segments: np.ndarray | None,
    window: int | None,
    h: int,
) -> np.ndarray:
    """What head h wrote at each position of one normed sequence [T, D], before ``update_bias``."""
    g = h // (config.num_heads // config.num_kv_heads)
    query = x @ w["query"][:, h] + (w["query_bias"][h] if config.biases else 0.0)
    key = x @ w["key"][:, g] + (w["key_bias"][g] if config.biases else 0.0)
    if config.query_key_norm:
        epsilon = config.norm_epsilon
        query = np.stack([norm("rmsnorm", epsilon, q, within(w, "query_norm")) for q in query])
        key = np.stack([norm("rmsnorm", epsilon, k, within(w, "key_norm")) for k in key])
    if config.positions == "rotary":
        base = config.rotary_base
        query = np.stack([turn(q, p, base) for q, p in zip(query, positions, strict=True)])
        key = np.stack([turn(k, p, base) for k, p in zip(key, positions, strict=True)])
    if config.value_map == "full":
        written = x @ w["value_full"][h]
    else:
        value = x @ w["value_down"][:, g] + (w["value_bias"][g] if config.biases else 0.0)
        written = value @ w["value_up"][h]
    update = np.zeros_like(x)
    for t in range(len(x)):
        seen = [s for s in range(len(x)) if sees(t, s, window, segments)]
        scores = np.array([query[t] @ key[s] for s in seen]) / math.sqrt(config.head_dim)
        if config.logit_cap is not None:
            scores = config.logit_cap * np.tanh(scores / config.logit_cap)
        chances = np.exp(scores - scores.max())
        chances /= chances.sum()
        for chance, s in zip(chances, seen, strict=True):
            update[t] += chance * written[s]
    return update


def attention(
    config: ModelConfig,
    w: Weights,
    x: np.ndarray,
    positions: np.ndarray,
    segments: np.ndarray | None,
    window: int | None,
) -> np.ndarray:
    """The summed updates of all heads on one normed sequence [T, D]."""
    total = np.zeros_like(x)
    for h in range(config.num_heads):
        total += head_update(config, w, x, positions, segments, window, h)
    return total + (w["update_bias"] if config.biases else 0.0)


def activation(kind: str, x: np.ndarray) -> np.ndarray:
    """GELU, exact or by tanh, and SiLU for "swiglu"."""
    if kind == "gelu_erf":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x))


def mlp(config: ModelConfig, w: Weights, x: np.ndarray) -> np.ndarray:
    """The MLP's update of one normed sequence [T, D]."""
    up = x @ w["up"] + (w["up_bias"] if config.biases else 0.0)
    if config.mlp == "swiglu":
        hidden = activation("swiglu", x @ w["gate"]) * up
    else:
        hidden = activation(config.mlp, up)
    return hidden @ w["down"] + (w["down_bias"] if config.biases else 0.0)


def logits(
    config: ModelConfig,
    w: Weights,
    tokens: np.ndarray,
    positions: np.ndarray | None = None,
    segments: np.ndarray | None = None,
) -> np.ndarray:
    """Logits [B, T, V] of the true vocabulary for tokens [B, T]."""
    rows = []
    for b, row in enumerate(tokens):
        places = np.arange(len(row)) if positions is None else positions[b]
        documents = None if segments is None else segments[b]
        rows.append(_sequence(config, w, row, places, documents))
    return np.stack(rows)


def _sequence(
    config: ModelConfig,
    w: Weights,
    tokens: np.ndarray,
    positions: np.ndarray,
    segments: np.ndarray | None,
) -> np.ndarray:
    def normed(x: np.ndarray, gains: Weights) -> np.ndarray:
        return np.stack([norm(config.norm, config.norm_epsilon, v, gains) for v in x])

    x = np.stack([w["embedding"][token] for token in tokens])
    if config.positions == "learned":
        x = x + np.stack([w["positions"][p] for p in positions])
    for i in range(config.num_layers):
        block, window = layer(w, config, i), config.window[i % len(config.window)]
        before = normed(x, within(block, "attention_norm"))
        heads = within(block, "attention")
        x = x + attention(config, heads, before, positions, segments, window)
        if config.mlp == "none":
            continue
        read = before if config.parallel_blocks else normed(x, within(block, "mlp_norm"))
        x = x + mlp(config, within(block, "mlp"), read)
    table = w["embedding"] if config.tie_embeddings else w["unembedding"]
    return normed(x, within(w, "norm")) @ table[: config.vocab_size].T


def loss(found: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy, in nats, of logits [B, T, V] against labels [B, T]."""
    top = found.max(-1, keepdims=True)
    normaliser = np.log(np.exp(found - top).sum(-1)) + top[..., 0]
    return float(np.mean(normaliser - np.take_along_axis(found, labels[..., None], -1)[..., 0]))
