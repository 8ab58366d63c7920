"""Sampling: prompts continued by a saved model, through the key/value cache.

``python -m train.sample --checkpoint=runs/toy --prompt="the mole"``
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.text import Text

from configs import checkpoint_flags, command
from configs.errors import UserError
from configs.figures import write_json
from model.axes import check_mesh, make_mesh, split_host
from model.compiled import keep_compiled
from model.manifest import EMA, MODEL
from model.transformer import Transformer
from text.tokenizers import Tokenizer
from train.decoding import continue_tokens
from train.opening import open_together
from train.processes import joining
from train.processes.alike import check_alike, of_flags
from train.processes.group import Processes
from train.sampler import Sampler


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
            tokens = np.asarray(tokenizer.encode(prompt), np.int32)
        except UserError as error:
            reason = str(error).removeprefix("data.tokenizer: ")
            raise UserError(f"the prompt {prompt[:40]!r} cannot be read: {reason}") from error
        if tokenizer.end_id is not None:
            # Documents are read after the end of another.
            tokens = np.concatenate([[tokenizer.end_id], tokens]).astype(np.int32)
        ids.append(tokens)
    # A model may have room for more tokens than the tokenizer knows.
    sampler = dataclasses.replace(sampler, vocab_size=tokenizer.vocab_size)
    drawn = continue_tokens(model, ids, new_tokens, sampler, seed, tokenizer.end_id)
    texts = []
    for tokens, new in zip(ids, drawn, strict=True):
        read = tokens[1:] if tokenizer.end_id is not None else tokens
        before = tokenizer.decode(read)
        text = tokenizer.decode(np.concatenate([read, new]))[len(before) :]
        texts.append(text.split(stop)[0] if stop else text)
    return texts


def _define_flags() -> None:
    checkpoint_flags.define()
    joining.define_flags()
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
            with open(flags.FLAGS.prompts, encoding="utf-8-sig") as file:
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
    with joining.join() as processes:
        _sample(processes)


def _sample(processes: Processes) -> None:
    given = checkpoint_flags.checkpoint()
    console = Console(highlight=False, soft_wrap=True, quiet=not processes.first)
    items = (EMA if flags.FLAGS.ema else MODEL,)
    saved = open_together(given, processes, items, say=console.print)
    if saved.tokenizer is None:
        raise UserError(f"{saved.path} was trained on random tokens and has no words to say.")
    defaults = saved.config.sample
    heat = flags.FLAGS.temperature
    heat = defaults.temperature if heat is None else heat
    sampler = Sampler(heat, flags.FLAGS.top_k, flags.FLAGS.top_p)
    sampler.check()
    prompts = _prompts(defaults.prompts)
    drawn = of_flags("tokens", "temperature", "top_k", "top_p", "seed", "stop")
    check_alike(processes, of_flags("mesh", "host_devices", "ema") | drawn | {"--prompt": prompts})
    split_host(checkpoint_flags.host_devices(saved.config))
    mesh = make_mesh(checkpoint_flags.mesh_sizes(), field="--mesh")
    sizes = mesh.shape
    # Prompts, and tokens that come one by one, need not divide.
    check_mesh(mesh, saved.model_config, sizes["data"] * sizes["fsdp"], sizes["context"])
    with jax.set_mesh(mesh):
        model = saved.load_model(mesh, ema=flags.FLAGS.ema)
        continuations = continue_texts(
            model,
            saved.tokenizer,
            prompts,
            flags.FLAGS.tokens or defaults.tokens,
            sampler,
            flags.FLAGS.seed,
            flags.FLAGS.stop,
        )
    if not processes.first:
        return
    for prompt, text in zip(prompts, continuations, strict=True):
        console.print(Text.assemble((prompt, "bold"), text, "\n"))
    if flags.FLAGS.json:
        rows = [dict(prompt=p, text=t) for p, t in zip(prompts, continuations, strict=True)]
        write_json(flags.FLAGS.json, dict(checkpoint=str(saved.path), samples=rows))


if __name__ == "__main__":
    command.run(main, _define_flags)
