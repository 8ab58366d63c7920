"""Sampling: prompts continued by a saved model, through the key/value cache.

``python -m train.sample --checkpoint=runs/toy --prompt="the mole"``
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from rich.console import Console
from rich.text import Text

from configs import command
from configs.errors import UserError
from configs.figures import write_json
from model.cache import Cache
from model.compiled import keep_compiled
from model.saved import open_saved
from model.transformer import Transformer
from text.tokenizers import Tokenizer
from train.evaluate import checkpoint_flag, define_checkpoint_flags, mesh_flag

# Lengths are rounded up to a multiple, so that prompts of many lengths share a compilation.
BUCKET = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a token is drawn; plain numbers, so that changing one recompiles nothing.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: only the likeliest k tokens; 0 for all.
      top_p: only the likeliest tokens that together reach this probability; 1 for all
        (Holtzman et al. 2020, "nucleus sampling").
      vocab_size: only tokens below it; 0 for all that the model has.
    """

    temperature: Float[Array, ""] | float = 0.8
    top_k: Int[Array, ""] | int = 0
    top_p: Float[Array, ""] | float = 1.0
    vocab_size: Int[Array, ""] | int = 0

    def check(self) -> None:
        """Raises UserError where a number is out of its range."""
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature={self.temperature} must be finite and at least 0.")
        if self.top_k < 0:
            raise UserError(f"--top_k={self.top_k} must be at least 0; 0 takes all tokens.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p={self.top_p} must be above 0 and at most 1.")

    def allowed(self, logits: Float[Array, "B V"]) -> Bool[Array, "B V"]:
        """Returns the tokens that may be drawn; the likeliest always may."""
        order = jnp.argsort(logits, axis=-1, descending=True)
        rank = jnp.argsort(order, axis=-1)
        heat = jnp.maximum(self.temperature, 1e-6)
        chance = jax.nn.softmax(jnp.take_along_axis(logits, order, -1) / heat, axis=-1)
        before = jnp.cumsum(chance, axis=-1) - chance
        within = jnp.take_along_axis(before, rank, -1) < self.top_p
        few = jnp.where(self.top_k > 0, self.top_k, logits.shape[-1])
        return (within & (rank < few)) | (rank == 0)

    def draw(
        self, logits: Float[Array, "B V"], key: PRNGKeyArray, index: Int[Array, "B"]
    ) -> Int[Array, "B"]:
        """Draws a token a row; a row's draws depend on its own number and places alone.

        Args:
          logits: of the next token.
          key: of the whole sampling.
          index: place of the drawn token in its row.
        """
        known = (jnp.arange(logits.shape[-1]) < self.vocab_size) | (self.vocab_size == 0)
        logits = jnp.where(known[None], logits, -jnp.inf)
        heat = jnp.maximum(self.temperature, 1e-6)
        chosen = jnp.where(self.allowed(logits), logits / heat, -jnp.inf)
        rows = jnp.arange(logits.shape[0])
        keys = jax.vmap(lambda r, i: jax.random.fold_in(jax.random.fold_in(key, r), i))(rows, index)
        drawn = jax.vmap(jax.random.categorical)(keys, chosen)
        return jnp.where(self.temperature == 0, logits.argmax(-1), drawn)


def continue_tokens(
    model: Transformer,
    prompts: Sequence[Int[np.ndarray, "_"]],
    new_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    end_id: int | None = None,
) -> list[Int[np.ndarray, "_"]]:
    """Continues prompts of any lengths together.

    The model reads at most ``max_length`` tokens back: a row that is full goes on from its
    last half.

    Args:
      model: on the mesh that is set, or on one device.
      prompts: at least one token each.
      new_tokens: to draw for each.
      sampler: how.
      seed: of the draws; a row's depend on its number, not on the other rows.
      end_id: a row ends when it draws this token; None: never.

    Returns:
      The new tokens of each prompt, without the end token.

    Raises:
      UserError: a prompt is empty or holds a token outside the vocabulary.
    """
    vocab = model.config.vocab_size
    if model.config.max_length < 2:
        raise UserError("model.max_length = 1 leaves no room to continue; train with 2 or more.")
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {i} is empty; give it at least one token.")
        if prompt.min() < 0 or prompt.max() >= vocab:
            raise UserError(f"prompt {i} holds a token outside the vocabulary of {vocab}.")
    # The padding of the vocabulary is never drawn, however hot.
    sampler = dataclasses.replace(sampler, vocab_size=sampler.vocab_size or vocab)
    numbers = jax.tree.map(jnp.asarray, sampler)
    end = -1 if end_id is None else end_id
    rows = [np.asarray(prompt, np.int32) for prompt in prompts]
    wanted = np.full(len(rows), new_tokens)
    while wanted.any():
        reach = model.config.max_length
        heard = [row if len(row) < reach else row[-max(1, reach // 2) :] for row in rows]
        limits = np.minimum(wanted, [reach - len(row) for row in heard])
        drawn = _continue(model, heard, rows, limits, numbers, jax.random.key(seed), end)
        for i, (new, limit) in enumerate(zip(drawn, limits, strict=True)):
            rows[i] = np.concatenate([rows[i], new[:limit]])
            wanted[i] = 0 if end in new[:limit] else wanted[i] - limit
    return [_until(row[len(prompt) :], end) for row, prompt in zip(rows, prompts, strict=True)]


def _continue(
    model: Transformer,
    heard: list[np.ndarray],
    rows: list[np.ndarray],
    limits: np.ndarray,
    sampler: Sampler,
    key: Array,
    end: int,
) -> np.ndarray:
    """Draws up to ``limits`` tokens after what each row has ``heard`` of itself."""
    lengths = np.array([len(row) for row in heard], np.int32)
    width, steps = _rounded(int(lengths.max())), _rounded(int(limits.max()))
    tokens = np.zeros((len(rows), width), np.int32)
    for padded, row in zip(tokens, heard, strict=True):
        padded[: len(row)] = row
    slots = min(width + steps, model.config.max_length)
    cache = model.empty_cache(len(rows), slots)
    before = jnp.array([len(row) for row in rows], jnp.int32) - lengths
    logits, cache = _prefill(model, jnp.asarray(tokens[:, :slots]), jnp.asarray(lengths), cache)
    drawn = _decode(
        model,
        logits,
        jnp.asarray(lengths),
        before,
        cache,
        jnp.asarray(limits, jnp.int32),
        steps,
        sampler,
        key,
        jnp.int32(end),
    )
    return np.asarray(drawn)


def _rounded(length: int) -> int:
    return -(-length // BUCKET) * BUCKET


def _until(row: Int[np.ndarray, "n"], end: int) -> Int[np.ndarray, "m"]:
    ends = np.flatnonzero(row == end)
    return row[: ends[0]] if len(ends) else row


@jax.jit
def _prefill(
    model: Transformer, tokens: Array, lengths: Array, cache: list[Cache]
) -> tuple[Array, list[Cache]]:
    """Returns the logits after each prompt, and the cache that holds the prompts."""
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    place = model.compute.place
    tokens, index = place(tokens, ("batch", None)), place(index, ("batch", None))
    logits, cache = model.decode(tokens, index, cache)
    logits = place(logits, (None, None, None))
    is_last = jnp.arange(tokens.shape[1])[None] == lengths[:, None] - 1
    return jnp.where(is_last[..., None], logits, 0).sum(1), cache


def _decode_loop(
    model: Transformer,
    logits: Array,
    lengths: Array,
    before: Array,
    cache: list[Cache],
    limits: Array,
    steps: int,
    sampler: Sampler,
    key: Array,
    end: Array,
) -> Array:
    """Draws up to ``limits`` tokens a row, or to the end token.

    ``lengths`` counts the tokens in the cache, ``before`` those that are no longer in it.
    """
    place = model.compute.place

    def going(carry: tuple[Any, ...]) -> Array:
        i, _, _, _, ended = carry
        return ((i < limits) & ~ended).any()

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        i, logits, cache, drawn, ended = carry
        index = lengths + i
        token = sampler.draw(logits, key, index + before)
        token = jnp.where(ended, jnp.maximum(end, 0), token).astype(jnp.int32)
        drawn = jnp.where(jnp.arange(steps)[None] == i, token[:, None], drawn)
        new = place(token[:, None], ("batch", None))
        logits, cache = model.decode(new, place(index[:, None], ("batch", None)), cache)
        logits = place(logits, (None, None, None))[:, 0]
        return i + 1, logits, cache, drawn, ended | (token == end)

    rows = logits.shape[0]
    drawn = jnp.full((rows, steps), end, jnp.int32)
    start = (jnp.int32(0), logits, cache, drawn, jnp.zeros(rows, bool))
    return jax.lax.while_loop(going, body, start)[3]


_decode = jax.jit(_decode_loop, static_argnums=6)


def continue_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    new_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    stop: str = "",
) -> list[str]:
    """Continues texts; a continuation ends before ``stop``, and where the document ends.

    An empty prompt begins a document, for tokenizers with an end token.

    Raises:
      UserError: see ``continue_tokens``; a prompt that the tokenizer cannot read.
    """
    ids = []
    for prompt in prompts:
        try:
            own = np.asarray(tokenizer.encode(prompt), np.int32)
        except UserError as error:
            reason = str(error).removeprefix("data.tokenizer: ")
            raise UserError(f"the prompt {prompt[:40]!r} cannot be read: {reason}") from error
        if tokenizer.end_id is not None:
            # Documents are read after the end of another.
            own = np.concatenate([[tokenizer.end_id], own]).astype(np.int32)
        ids.append(own)
    # A model may have room for more tokens than the tokenizer knows.
    sampler = dataclasses.replace(sampler, vocab_size=tokenizer.vocab_size)
    found = continue_tokens(model, ids, new_tokens, sampler, seed, tokenizer.end_id)
    texts = []
    for own, new in zip(ids, found, strict=True):
        read = own[1:] if tokenizer.end_id is not None else own
        before = tokenizer.decode(read)
        text = tokenizer.decode(np.concatenate([read, new]))[len(before) :]
        texts.append(text.split(stop)[0] if stop else text)
    return texts


def _define_flags() -> None:
    define_checkpoint_flags()
    flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times.")
    flags.DEFINE_string("prompts", None, "A file with a prompt a line.")
    flags.DEFINE_integer("tokens", None, "New tokens for each prompt.", lower_bound=1)
    flags.DEFINE_float("temperature", None, "Divides the logits; 0: the likeliest token.")
    flags.DEFINE_integer("top_k", 0, "Only the likeliest k tokens; 0: all.", 0, 2**31 - 1)
    flags.DEFINE_float("top_p", 1.0, "Only the likeliest tokens that reach this probability.")
    flags.DEFINE_integer("seed", 0, "Of the draws.", 0, 2**32 - 1)
    flags.DEFINE_string("stop", "", "A continuation ends before this text.")


def _prompts(default: Sequence[str]) -> list[str]:
    prompts = list(flags.FLAGS.prompt)
    if flags.FLAGS.prompts:
        try:
            with open(flags.FLAGS.prompts, encoding="utf-8") as file:
                lines = [line.rstrip("\n") for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts={flags.FLAGS.prompts} cannot be read; name a UTF-8 text file."
            ) from error
        if not lines:
            raise UserError(f"--prompts={flags.FLAGS.prompts} is empty; write a prompt a line.")
        prompts += lines
    return prompts or list(default) or [""]


def main() -> None:
    """Prints the continuations of the prompts."""
    keep_compiled()
    saved = open_saved(checkpoint_flag())
    if saved.tokenizer is None:
        raise UserError(f"{saved.path} was trained on random tokens and has no words to say.")
    defaults = saved.config.sample
    heat = flags.FLAGS.temperature
    heat = defaults.temperature if heat is None else heat
    sampler = Sampler(heat, flags.FLAGS.top_k, flags.FLAGS.top_p)
    sampler.check()
    prompts = _prompts(defaults.prompts)
    mesh = mesh_flag()
    with jax.set_mesh(mesh):
        model = saved.load_model(mesh)
        found = continue_texts(
            model,
            saved.tokenizer,
            prompts,
            flags.FLAGS.tokens or defaults.tokens,
            sampler,
            flags.FLAGS.seed,
            flags.FLAGS.stop,
        )
    console = Console(highlight=False, soft_wrap=True)
    for prompt, text in zip(prompts, found, strict=True):
        console.print(Text.assemble((prompt, "bold"), text, "\n"))
    if flags.FLAGS.json:
        rows = [dict(prompt=p, text=t) for p, t in zip(prompts, found, strict=True)]
        write_json(flags.FLAGS.json, dict(checkpoint=str(saved.path), samples=rows))


if __name__ == "__main__":
    command.run(main, _define_flags)
