"""Sampling against its bound: the weights' products for every token in their fastest form, and nothing else.

    python -m tests.benchmarks.sampling --tokens 64 --peer-path LlamaGen

Peers: LlamaGen (`autoregressive.models`, a checkout by --peer-path; a square number of tokens), transformers' Llama.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenizers_vq._torchvision  # noqa: F401  (before transformers, which imports torchvision)
from prior.networks.packing import product
from tests.benchmarks.bench import compare, measure, parser, start
from tests.benchmarks.ours import sampler

Run = Callable[[], object]


def forms(weights: list[Tensor], inputs: list[Tensor]) -> dict[str, Run]:
    """Ways of taking all products once: inputs `(rows, in)`, weights `(out, in)`."""
    rows = inputs[0].shape[0]
    pairs = list(zip(weights, inputs, strict=True))
    columns = [x.T.contiguous() for x in inputs]
    packed = [product(weight, rows) for weight in weights]
    found: dict[str, Run] = {
        "F.linear": lambda: [F.linear(x, weight) for weight, x in pairs],
        "W @ x.T": lambda: [weight @ x for weight, x in zip(weights, columns, strict=True)],
        "prepacked": lambda: [apply(x) for apply, x in zip(packed, inputs, strict=True)],
    }
    if rows == 1:
        found["mv"] = lambda: [torch.mv(weight, x[0]) for weight, x in pairs]
    return found


def bound(layers: int, dim: int, vocabulary: int, tokens: int, rows: int, dtype: torch.dtype) -> tuple[str, Run]:
    """The fastest form's name, and a function that takes the products of all `tokens`."""
    hidden = -(-(8 * dim // 3) // 256) * 256
    shapes = [(3 * dim, dim), (dim, dim), (2 * hidden, dim), (dim, hidden)] * layers + [(vocabulary, dim)]
    weights = [torch.randn(shape).mul_(0.02).to(dtype) for shape in shapes]
    inputs = [torch.randn(rows, weight.shape[1]).to(dtype) for weight in weights]
    candidates = forms(weights, inputs)
    seconds = measure(candidates)
    name = min(seconds, key=lambda form: seconds[form])
    return name, lambda: [candidates[name]() for _ in range(tokens)]


def llamagen(
    layers: int, dim: int, vocabulary: int, tokens: int, batch: int, guidance: float, dtype: torch.dtype
) -> Run | None:
    """LlamaGen's own model and `generate`, where it can be imported."""
    try:
        from autoregressive.models.generate import generate
        from autoregressive.models.gpt import ModelArgs, Transformer
    except ImportError:
        return None
    arguments = ModelArgs(
        dim=dim, n_layer=layers, n_head=dim // 64, vocab_size=vocabulary, num_classes=10, block_size=tokens
    )
    model = Transformer(arguments).to(dtype).eval()
    labels = torch.arange(batch) % 10
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": True}
    return lambda: generate(model, labels, tokens, cfg_scale=guidance, **options)


def transformers_llama(
    layers: int, dim: int, vocabulary: int, tokens: int, batch: int, guidance: float, dtype: torch.dtype
) -> Run | None:
    """transformers' Llama and `generate`, where it is installed; without guidance only."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    if guidance != 1:
        return None
    hidden = -(-(8 * dim // 3) // 256) * 256
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=dim // 64, max_position_embeddings=tokens + 1, bos_token_id=0, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    begin = torch.ones(batch, 1, dtype=torch.int64)
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "min_new_tokens": tokens, "max_new_tokens": tokens}
    return lambda: model.generate(begin, attention_mask=begin, **options)


GOALS = {("float32", 1): 1.2, ("float32", 8): 1.2, ("bfloat16", 1): 1.4, ("bfloat16", 8): 1.7}


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layers", type=int, default=12)
    options.add_argument("--dim", type=int, default=768)
    options.add_argument("--vocabulary", type=int, default=16384)
    options.add_argument("--tokens", type=int, default=256)
    options.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    options.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    options.add_argument("--no-peers", action="store_true", help="ours and the bound alone")
    given = options.parse_args()
    start(given)
    size = (given.layers, given.dim, given.vocabulary, given.tokens)
    for name in given.dtype:
        dtype = getattr(torch, name)
        for batch in given.batch:
            runs = {}
            for guidance in (1.0, 2.0):
                rows = batch if guidance == 1 else 2 * batch
                form, least = bound(*size, rows, dtype)
                runs[guidance] = sampler(*size, batch, guidance, dtype)
                row: dict[str, Run] = {f"bound ({form}, {rows} rows)": least, "ours": runs[guidance]}
                if not given.no_peers:
                    peers = {"LlamaGen": llamagen, "transformers": transformers_llama}
                    found = {peer: make(*size, batch, guidance, dtype) for peer, make in peers.items()}
                    row |= {peer: run for peer, run in found.items() if run is not None}
                title = (
                    f"{given.layers} x {given.dim}, {given.tokens} tokens, {name}, batch {batch}, guidance {guidance:g}"
                )
                compare(title, row, next(iter(row)), goal=GOALS.get((name, batch)), repeats=given.repeats)
            if batch == 1:
                goal = 1.15 if name == "bfloat16" else None
                compare(
                    f"what guidance costs, {name}, batch 1",
                    {"guidance 1": runs[1.0], "guidance 2": runs[2.0]},
                    "guidance 1",
                    goal=goal,
                    repeats=given.repeats,
                )


if __name__ == "__main__":
    main()
