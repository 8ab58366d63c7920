"""transformers' GPT-2 in PyTorch, as a contender."""

from typing import Any

import torch
import transformers

from bench import start
from bench.shapes import FEW, SHAPES, Shape
from bench.worker import peak_bytes


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


class Decoding:
    """The likeliest new tokens after random prompts, by ``generate`` with its cache."""

    def __init__(self, shape: str, precision: str, batch: int, prompt: int, new: int):
        """Args: name of the shape, dtype, rows, tokens of each prompt, new tokens of each row."""
        self.new = new
        self.model = network(SHAPES[shape]).to(getattr(torch, precision)).eval()
        prompts = start.prompts(SHAPES[shape], batch, prompt)
        self.prompts = torch.from_numpy(prompts).long()

    def run(self, times: int) -> dict[str, object]:
        """Continues the prompts; returns the new tokens."""
        found = self.prompts
        for _ in range(times):
            with torch.no_grad():
                found = self.model.generate(
                    self.prompts,
                    attention_mask=torch.ones_like(self.prompts),
                    max_new_tokens=self.new,
                    do_sample=False,
                    use_cache=True,
                )
        return dict(drawn=found[:, self.prompts.shape[1] :].tolist())


class Attention:
    """PyTorch's fused causal kernel: values, and gradients of queries, keys and values."""

    def __init__(self, length: int, precision: str, heads: int = 12, width: int = 64):
        """Args: tokens, "float32" or "bfloat16", heads, width of each."""
        torch.manual_seed(0)
        dtype = getattr(torch, precision)

        def arrays(length: int) -> list[torch.Tensor]:
            shape = (1, heads, length, width)
            return [torch.randn(shape, dtype=dtype, requires_grad=i < 3) for i in range(4)]

        self.libraries = 0
        self.arrays = arrays(FEW)
        self.run(1)
        self.libraries = peak_bytes()
        self.arrays = arrays(length)

    def run(self, times: int) -> dict[str, object]:
        """Attends, forward and backward; returns what few tokens take."""
        *read, given = self.arrays
        for _ in range(times):
            out = torch.nn.functional.scaled_dot_product_attention(*read, is_causal=True)
            torch.autograd.grad(out, read, given)
        return dict(backend="fused", libraries_bytes=self.libraries)
