"""Priors for other runtimes: a GPT as transformers' `LlamaForCausalLM`, where that computes the same."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from prior.conditions import ClassCondition, ClassConfig, NoCondition, NoneConfig
from prior.model import Prior
from prior.networks.blocks import RMSNorm
from prior.networks.gpt import Gpt, GptConfig
from tokenizers_vq.config import nearest
from tokenizers_vq.writing import replacing, write_atomically

FORMATS = ("llama",)
FILES = ("config.json", "generation_config.json", "model.safetensors", "export.json")
TOLERANCE = 1e-4
"""largest difference of logits, as a share of the largest logit"""
_NEEDS: dict[str, tuple[Any, str]] = {
    "norm": ("rms", "has RMSNorm"),
    "mlp": ("swiglu", "has a SwiGLU"),
    "bias": (False, "has no biases in its blocks"),
    "head_bias": (False, "has no bias in its head"),
    "qk_norm": (False, "has no norms of queries and keys"),
    "positions": ("rope_1d", "turns queries and keys by the place in the row"),
    "order": ("raster", "knows no target of the next place"),
    "entry": (("prefix",), "is told things as tokens before the codes alone"),
    "adaln_places": (False, "has no vectors of places"),
}
"""field of `GptConfig` -> the value that Llama has, and what Llama is, in words that follow its name"""


def export(prior: Prior, to: str, out: str | Path) -> dict[str, Any]:
    """Write a folder for `transformers.LlamaForCausalLM.from_pretrained`, and return what `export.json` in it says.

    Codes keep their numbers, 0 to K - 1; behind them stand the classes and the null class (or one token for no
    condition), then the begin vector where there is one: `prompt` says which tokens stand before the codes. Tokens that
    are no codes have logits of 0 and are suppressed in `generation_config.json`. What was written is loaded and
    compared before `out` appears, at once and whole. Raises `ValueError` for an unknown format, without transformers,
    for a prior that Llama cannot hold, with the reason, for logits that differ, and where `out` holds anything but an
    earlier export.
    """
    if to not in FORMATS:
        raise ValueError(f"no format '{to}' of priors{nearest(to, FORMATS)}; there are: {', '.join(FORMATS)}")
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("transformers is not installed, which writes the folder: pip install transformers")
    if problem := _problem(prior):
        raise ValueError(f"transformers' Llama {problem}")
    out = Path(out)
    with replacing(out) as new:
        found = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if (out.exists() and not out.is_dir()) or not found <= set(FILES):
            raise ValueError(f"{out} is not an earlier export: give --out another folder")
        report = _write(copy.deepcopy(prior).cpu().float().eval(), new)
        write_atomically(new / FILES[-1], json.dumps(report, indent=2) + "\n")
    return report


def _problem(prior: Prior) -> str | None:
    """What Llama cannot hold, in words that follow its name."""
    config, condition = prior.config.network, prior.config.condition
    if not isinstance(config, GptConfig):
        return f"is a decoder-only transformer, this prior's network of kind '{config.kind}'"
    for name, (value, words) in _NEEDS.items():
        own = getattr(config, name)
        if own != value:
            shown = f"[{', '.join(own)}]" if isinstance(own, tuple) else str(own).lower()
            return f"{words}, this prior has network.{name}={shown}: train one with {name}={_yaml(value)} to export it"
    if len(prior.layout.sizes) > 1:
        return f"has one table of tokens for all places, this prior {len(prior.layout.sizes)} streams of codes"
    if not isinstance(condition, (ClassConfig, NoneConfig)):
        return f"is prompted with tokens, this prior is told {prior.condition.noun} as vectors of another network"
    return None


def _yaml(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value).lower()


def _tokens(prior: Prior) -> tuple[Tensor, list[int], int | None]:
    """Vectors `(V, D)` of all tokens; the tokens of the conditions, the null last; that of the begin vector."""
    network, condition = prior.network, prior.condition
    assert isinstance(network, Gpt) and isinstance(condition, (ClassCondition, NoCondition))
    told = condition.classes.weight if isinstance(condition, ClassCondition) else condition.begin[None]
    table = torch.cat((network.tokens.weight, told))
    conditions = list(range(len(network.tokens.weight), len(table)))
    if network.begin is None:
        return table, conditions, None
    return torch.cat((table, network.begin[None])), conditions, len(table)


def _config(prior: Prior, vocabulary: int, lead: int) -> Any:
    from transformers import LlamaConfig

    config = prior.config.network
    assert isinstance(config, GptConfig)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.base}
    if (scale := config.rotary_scale[0] * config.rotary_scale[1]) != 1:
        rope |= {"rope_type": "linear", "factor": 1 / scale}
    fields: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "rms_norm_eps": config.eps,
        "max_position_embeddings": lead + prior.layout.length,
        # As transformers has named both before and since its version 5.
        "rope_theta": config.base,
        "rope_scaling": rope,
        "tie_word_embeddings": False,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    return LlamaConfig(**fields)


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows `(D, D)` of queries or keys: ours turn neighbouring channels, Llama's those half a head apart."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _state(prior: Prior, table: Tensor) -> dict[str, Tensor]:
    network = prior.network
    assert isinstance(network, Gpt) and isinstance(network.norm, RMSNorm) and network.norm.weight is not None
    head = torch.zeros_like(table)
    head[: len(network.head.weight)] = network.head.weight
    found: dict[str, Tensor] = {
        "model.embed_tokens.weight": table,
        "model.norm.weight": network.norm.weight,
        "lm_head.weight": head,
    }
    for layer, block in enumerate(network.stack):
        q, k, v = block.qkv.weight.chunk(3)
        gate, up = block.gate_up.weight.chunk(2)
        assert isinstance(block.attention_norm, RMSNorm) and isinstance(block.mlp_norm, RMSNorm)
        parts: dict[str, Any] = {
            "input_layernorm": block.attention_norm.weight,
            "self_attn.q_proj": _halves(q, block.heads),
            "self_attn.k_proj": _halves(k, block.heads),
            "self_attn.v_proj": v,
            "self_attn.o_proj": block.out.weight,
            "post_attention_layernorm": block.mlp_norm.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.down.weight,
        }
        found.update({f"model.layers.{layer}.{name}.weight": weight for name, weight in parts.items()})
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@torch.no_grad()
def _write(prior: Prior, folder: Path) -> dict[str, Any]:
    """The folder, written by transformers and read back; what was compared, and how it is prompted."""
    from transformers import GenerationConfig, LlamaForCausalLM

    table, conditions, begin = _tokens(prior)
    lead = [] if begin is None else [begin]
    model = LlamaForCausalLM(_config(prior, len(table), len(lead) + 1))
    model.load_state_dict(_state(prior, table), strict=True)
    codes = prior.layout.sizes[0]
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,
        min_new_tokens=prior.layout.length,
        max_new_tokens=prior.layout.length,
        suppress_tokens=list(range(codes, len(table))),
    )
    model.save_pretrained(folder)
    report = {
        "format": "llama",
        "tokenizer": prior.config.tokenizer,
        "fingerprint": prior.config.fingerprint,
        "layout": prior.layout.to_dict(),
        "codes": [0, codes],
        "prompt": [*lead, "condition"],
        "conditions": [conditions[0], conditions[-1] + 1],
        "null": conditions[-1] if prior.condition.guidable else None,
    }
    return {**report, "compared": _compare(prior, LlamaForCausalLM.from_pretrained(folder).eval(), lead, conditions)}


def _compare(prior: Prior, model: Any, lead: list[int], conditions: list[int]) -> dict[str, Any]:
    """Logits of random codes, with each of up to eight conditions. Raises `ValueError` where they differ."""
    drawn = torch.Generator().manual_seed(0)
    classes = isinstance(prior.config.condition, ClassConfig)
    count = min(8, len(conditions) - classes)
    tokens = torch.randint(prior.layout.sizes[0], (count, prior.layout.length), generator=drawn)
    ours = prior.logits(tokens, torch.arange(count) if classes else None)
    prompt = torch.tensor([[*lead, conditions[index]] for index in range(count)])
    theirs = model(input_ids=torch.cat((prompt, tokens), dim=1)).logits[:, prompt.shape[1] - 1 : -1, : ours.shape[-1]]
    error, most = float((ours - theirs).abs().max()), float(ours.abs().max())
    if error > TOLERANCE * most:
        raise ValueError(
            f"transformers' Llama gives logits that differ by {error:.2g}, of at most {most:.2g}: not written"
        )
    return {"rows": count, "error": error, "largest": most}
