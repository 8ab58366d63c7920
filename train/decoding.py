"""Prompts of any lengths continued together: a prefill, then a token a step from the cache."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from configs.errors import UserError
from model.cache import Cache
from model.decoding import Decoder, ready
from model.devices.choice import device
from model.transformer import Transformer
from train.sampler import Sampler

# Shortest prompt and cache that are compiled; longer ones double, so that few are.
BUCKET = 32


def continue_tokens(
    model: Transformer | Decoder,
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
      model: on the mesh that is set, or on one device. It is made ready for decoding at every call;
        ``model.decoding.ready`` does so once for many.
      prompts: at least one token each.
      seed: of the draws; a row's depend on its number, not on the other rows.
      end_id: a row ends when it draws this token; None: never.

    Returns:
      The new tokens of each prompt, without the end token.

    Raises:
      UserError: a prompt is empty or holds a token outside the vocabulary.
    """
    decoder = model if isinstance(model, Decoder) else ready(model)
    model = decoder.model
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
    end = np.int32(-1 if end_id is None else end_id)
    options = device().one_row_options if len(prompts) == 1 else {}
    loop, key, reach = _loop(tuple(options.items())), jax.random.key(seed), model.config.max_length
    rows = [np.asarray(prompt, np.int32) for prompt in prompts]
    wanted = np.full(len(rows), new_tokens)
    while wanted.any():
        contexts = [row if len(row) < reach else row[-max(1, reach // 2) :] for row in rows]
        lengths = np.array([len(row) for row in contexts], np.int32)
        before = np.array([len(row) for row in rows], np.int32) - lengths
        limits = np.minimum(wanted, reach - lengths).astype(np.int32)
        # The last token of each row is the first that the loop reads.
        longest = int(lengths.max()) - 1
        tokens = np.zeros((len(rows), _bucket(longest)), np.int32)
        for padded, row in zip(tokens, contexts, strict=True):
            padded[: len(row) - 1] = row[:-1]
        cache = _prefill(decoder, tokens, lengths - 1, _bucket(longest + int(limits.max())))
        last = np.array([row[-1] for row in contexts])
        drawn, _ = loop(decoder, last, lengths, before, cache, limits, numbers, key, end)
        for i, (new, limit) in enumerate(zip(np.asarray(drawn), limits, strict=True)):
            ends = np.flatnonzero(new[:limit] == end)
            wanted[i] = 0 if len(ends) else wanted[i] - limit
            rows[i] = np.concatenate([rows[i], new[: ends[0] if len(ends) else limit]])
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def _bucket(length: int) -> int:
    return max(BUCKET, 1 << (length - 1).bit_length())


@functools.partial(jax.jit, static_argnames="slots")
def _prefill(decoder: Decoder, tokens: Array, lengths: Array, slots: int) -> Cache:
    """Returns a cache of so many slots that holds the first ``lengths`` tokens of each row."""
    reshard = decoder.model.compute.reshard
    cache = decoder.empty_cache(tokens.shape[0], slots)
    index = jnp.arange(tokens.shape[1])[None]
    index = jnp.where(index < lengths[:, None], index, -1)
    tokens, index = (reshard(x, ("batch", None)) for x in (tokens, index))
    return decoder.decode(tokens, index, jnp.int32(0), cache)[1]


def _decode(
    decoder: Decoder,
    token: Array,
    lengths: Array,
    before: Array,
    cache: Cache,
    limits: Array,
    sampler: Sampler,
    key: Array,
    end: Array,
) -> tuple[Array, Cache]:
    """Draws up to ``limits`` tokens a row after ``token``, or to the end token.

    ``lengths`` counts the tokens up to and with ``token``, ``before`` those that no longer count.
    The cache is returned so that its buffers, which are given away, serve through the loop.
    """
    reshard = decoder.model.compute.reshard
    longest = lengths.max()

    def going(carry: tuple[Any, ...]) -> Array:
        i, _, _, _, ended = carry
        return ((i < limits) & ~ended).any()

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        i, token, cache, drawn, ended = carry
        index = lengths + i
        last = reshard(token[:, None], ("batch", None))
        here = reshard(index[:, None] - 1, ("batch", None))
        cache = dataclasses.replace(cache, layers=device().uncarried(cache.layers))
        logits, cache = decoder.decode(last, here, longest - 1 + i, cache)
        cache = dataclasses.replace(cache, layers=device().carried(cache.layers))
        logits = reshard(logits, (None, None, None))[:, 0]
        token = sampler.draw(logits, key, index + before)
        token = jnp.where(ended, jnp.maximum(end, 0), token).astype(jnp.int32)
        drawn = jax.lax.dynamic_update_slice_in_dim(drawn, token[:, None], i, 1)
        return i + 1, token, cache, drawn, ended | (token == end)

    rows, slots = cache.position.shape
    drawn = jnp.full((rows, slots), end, jnp.int32)
    cache = dataclasses.replace(cache, layers=device().carried(cache.layers))
    start = (jnp.int32(0), token, cache, drawn, jnp.zeros(rows, bool))
    _, _, cache, drawn, _ = jax.lax.while_loop(going, body, start)
    return drawn, cache


@functools.cache
def _loop(options: tuple[tuple[str, str], ...]) -> Callable[..., tuple[Array, Cache]]:
    """Returns the loop, compiled with options of the compiler."""
    return jax.jit(_decode, donate_argnames="cache", compiler_options=dict(options))
