"""transformers' GPT-2 in PyTorch, as a contender."""

from typing import Any

import torch
import transformers

from bench import start
from bench.shapes import SHAPES, Shape


def network(shape: Shape) -> Any:
    """Returns GPT-2 with the parameters that every contender starts from, without dropout."""
    config = transformers.GPT2Config(
        vocab_size=shape.vocab,
        n_positions=shape.length,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config)
    arrays = start.gpt2_parameters(shape)
    model.transformer.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()})
    return model


class Training:
    """Optimizer steps: fused AdamW, clipping, and under bfloat16 autocast."""

    def __init__(self, shape: str, precision: str, compiled: bool):
        """Args: name of the shape, "float32" or "bfloat16", whether torch.compile is used."""
        self.shape = SHAPES[shape]
        self.precision = precision
        self.model = network(self.shape).train()
        decays: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            matrix = parameter.ndim == 2 and "wpe" not in name
            (decays if matrix else rest).append(parameter)
        groups = [dict(params=decays, weight_decay=0.1), dict(params=rest, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.batches = start.batches(self.shape)

    def run(self, steps: int) -> dict[str, float]:
        """Takes steps; returns the loss of the last in nats a token."""
        loss = torch.tensor(float("nan"))
        for _ in range(steps):
            tokens, labels = (torch.from_numpy(array).long() for array in next(self.batches))
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = self.forward(input_ids=tokens, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().reshape(-1, self.shape.vocab), labels.reshape(-1)
            )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        return dict(loss=float(loss.detach()))


class Attention:
    """PyTorch's fused causal kernel: values, and gradients of queries, keys and values."""

    def __init__(self, length: int, precision: str, heads: int = 12, width: int = 64):
        """Args: tokens, "float32" or "bfloat16", heads, width of each."""
        torch.manual_seed(0)
        shape, dtype = (1, heads, length, width), getattr(torch, precision)
        self.arrays = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
        self.given = torch.randn(shape, dtype=dtype)

    def run(self, times: int) -> dict[str, str]:
        """Attends, forward and backward."""
        for _ in range(times):
            out = torch.nn.functional.scaled_dot_product_attention(*self.arrays, is_causal=True)
            torch.autograd.grad(out, self.arrays, self.given)
        return dict(backend="fused")
