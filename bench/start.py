"""What every contender starts from: the same parameters and the same batches, drawn by NumPy."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from bench.shapes import Shape

Arrays = dict[str, Float[np.ndarray, "..."]]


def gpt2_parameters(shape: Shape, seed: int = 0) -> Arrays:
    """Draws parameters under the names that transformers gives them.

    Deviation 0.02, that of the two matrices that write to the residual stream smaller by the
    root of twice the layers (Radford et al. 2019, section 2.3).
    """
    rng = np.random.default_rng(seed)
    width, depth = shape.width, (2 * shape.layers) ** -0.5

    def normal(*sizes: int, scale: float = 0.02) -> Float[np.ndarray, "..."]:
        return rng.standard_normal(sizes, np.float32) * np.float32(scale)

    arrays: Arrays = {
        "wte.weight": normal(shape.vocab, width),
        "wpe.weight": normal(shape.length, width),
    }

    def norm(name: str) -> None:
        arrays[f"{name}.weight"] = np.ones(width, np.float32)
        arrays[f"{name}.bias"] = np.zeros(width, np.float32)

    for layer in range(shape.layers):
        block = f"h.{layer}"
        norm(f"{block}.ln_1")
        norm(f"{block}.ln_2")
        for name, sizes, scale in (
            ("attn.c_attn", (width, 3 * width), 0.02),
            ("attn.c_proj", (width, width), 0.02 * depth),
            ("mlp.c_fc", (width, 4 * width), 0.02),
            ("mlp.c_proj", (4 * width, width), 0.02 * depth),
        ):
            arrays[f"{block}.{name}.weight"] = normal(*sizes, scale=scale)
            arrays[f"{block}.{name}.bias"] = np.zeros(sizes[1], np.float32)
    norm("ln_f")
    return arrays


def head_parameters(shape: Shape, arrays: Arrays, vocab: int) -> Arrays:
    """Returns GPT-2's parameters under this project's names, one axis for heads.

    Args:
      shape: of the network.
      arrays: from ``gpt2_parameters``.
      vocab: rows of the embedding, with its padding.
    """
    width, heads = shape.width, shape.heads
    padding = ((0, vocab - shape.vocab), (0, 0))
    found = {
        "embedding": np.pad(arrays["wte.weight"], padding),
        "positions": arrays["wpe.weight"],
        "norm.gain": arrays["ln_f.weight"],
        "norm.bias": arrays["ln_f.bias"],
    }
    layers: list[Arrays] = []
    for layer in range(shape.layers):
        own = {
            name.removeprefix(f"h.{layer}."): array
            for name, array in arrays.items()
            if name.startswith(f"h.{layer}.")
        }
        fused = own["attn.c_attn.weight"].reshape(width, 3, heads, -1)
        biases = own["attn.c_attn.bias"].reshape(3, heads, -1)
        layers.append(
            {
                "attention_norm.gain": own["ln_1.weight"],
                "attention_norm.bias": own["ln_1.bias"],
                "attention.query": fused[:, 0],
                "attention.key": fused[:, 1],
                "attention.value_down": fused[:, 2],
                "attention.query_bias": biases[0],
                "attention.key_bias": biases[1],
                "attention.value_bias": biases[2],
                "attention.value_up": own["attn.c_proj.weight"].reshape(heads, -1, width),
                "attention.update_bias": own["attn.c_proj.bias"],
                "mlp_norm.gain": own["ln_2.weight"],
                "mlp_norm.bias": own["ln_2.bias"],
                "mlp.up": own["mlp.c_fc.weight"],
                "mlp.up_bias": own["mlp.c_fc.bias"],
                "mlp.down": own["mlp.c_proj.weight"],
                "mlp.down_bias": own["mlp.c_proj.bias"],
            }
        )
    for name in layers[0]:
        found[f"blocks.0.{name}"] = np.stack([layer[name] for layer in layers])
    return found


def batches(
    shape: Shape, seed: int = 1
) -> Iterator[tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"]]]:
    """Yields tokens and the tokens after them, without end.

    A token is followed by a fixed other one, nine times in ten, and by any one otherwise: there
    is something to learn.
    """
    rng = np.random.default_rng(seed)
    follower = rng.permutation(shape.vocab)
    while True:
        rows = np.empty((shape.batch, shape.length + 1), np.int32)
        rows[:, 0] = rng.integers(shape.vocab, size=shape.batch)
        for t in range(shape.length):
            anything = rng.integers(shape.vocab, size=shape.batch)
            rows[:, t + 1] = np.where(rng.random(shape.batch) < 0.9, follower[rows[:, t]], anything)
        yield rows[:, :-1], rows[:, 1:]


def prompts(shape: Shape, rows: int, length: int, seed: int = 2) -> Int[np.ndarray, "B T"]:
    """Draws prompts of random tokens."""
    rng = np.random.default_rng(seed)
    return rng.integers(shape.vocab, size=(rows, length)).astype(np.int32)
