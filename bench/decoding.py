"""Decoding against GPT-2 in PyTorch: new tokens a second, the prompts' prefill included."""

from bench.rounds import Contender, interleave, summary
from bench.training import PRECISIONS

BATCHES = (1, 8)
SHAPE = "124m"

# Tokens of each prompt, and new tokens of each row in a round.
PROMPT, NEW = 64, 64


def measure(rounds: int, peers: bool) -> list[dict]:
    """Returns a row a contender, batch and precision.

    A ratio is taken to the fastest peer at the batch, whatever its precision.

    Args:
      rounds: in which every contender runs once.
      peers: whether transformers and PyTorch are there.
    """
    rows = []
    for batch in BATCHES:
        contenders = {}
        for precision in PRECISIONS:
            common = dict(shape=SHAPE, precision=precision, batch=batch, prompt=PROMPT, new=NEW)
            contenders[f"manyheads {precision}"] = Contender("manyheads:Decoding", **common)
            if peers:
                contenders[f"GPT-2 generate {precision}"] = Contender(
                    "gpt2_torch:Decoding", **common
                )
        interleave(contenders, rounds, 1)
        for row in summary(contenders):
            row["contender"], _, precision = row["contender"].rpartition(" ")
            row["tokens_per_second"] = batch * NEW / row["seconds"]
            shape = f"{SHAPE}, batch {batch}"
            rows.append(dict(measure="decoding", shape=shape, precision=precision, **row))
    return rows
