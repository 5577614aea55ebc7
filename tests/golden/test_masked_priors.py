"""MaskGIT's transformer, schedule and Halton's order against recordings of their references."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prior.conditions import Context
from prior.networks.base import Noise
from prior.networks.masked import MaskedSampler, halton_order, left_masked
from prior.networks.maskgit import MaskGit, MaskGitConfig
from prior.sampling import Sampler, guidance_at
from prior.sequences import Sequence
from tests.conftest import SHARED
from tokenizers_vq.codes import CodeLayout

FOLDER = SHARED / "golden" / "maskgit-transformer" / "vit"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="no recordings beside the checkout")


def rename(weights: dict[str, Tensor], layers: int, codes: int) -> dict[str, Tensor]:
    """The keys of BERT (`ImageBert` of bytedance/1d-tokenizer) as ours; the token type is added everywhere there."""
    embeddings = "model.embeddings"
    types = weights[f"{embeddings}.token_type_embeddings.weight"][0]
    found = {
        "tokens.weight": weights[f"{embeddings}.word_embeddings.weight"][: codes + 1],
        "positions": weights[f"{embeddings}.position_embeddings.weight"][1:] + types,
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = weights[f"{embeddings}.LayerNorm.{kind}"]
        found[f"head.{kind}"] = weights[f"model.lm_head.{kind}"]
        for layer in range(layers):
            theirs, ours = f"model.encoder.layer.{layer}", f"blocks.{layer}"
            qkv = [weights[f"{theirs}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            found[f"{ours}.qkv.{kind}"] = torch.cat(qkv)
            for name, part in (
                ("out", "attention.output.dense"),
                ("attention_norm", "attention.output.LayerNorm"),
                ("up", "intermediate.dense"),
                ("down", "output.dense"),
                ("mlp_norm", "output.LayerNorm"),
            ):
                found[f"{ours}.{name}.{kind}"] = weights[f"{theirs}.{part}.{kind}"]
    return found


class Recorded(NamedTuple):
    network: MaskGit
    context: Context
    """of the recorded classes, with the null class"""
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


@pytest.fixture(scope="module")
def titok() -> Recorded:
    weights, recorded = load_file(FOLDER / "weights.safetensors"), load_file(FOLDER / "io.safetensors")
    meta = json.loads((FOLDER / "meta.json").read_text())
    made = json.loads((FOLDER / "config.json").read_text())["model"]["generator"]
    codes, layers = meta["mask_token"], made["num_hidden_layers"]
    sequence = Sequence(CodeLayout(((recorded["mask"].shape[1],),), 1, (codes,)))
    config = MaskGitConfig(layers=layers, dim=made["hidden_size"], heads=made["num_attention_heads"])
    network = config.build(sequence).eval()
    network.load_state_dict(rename(weights, layers, codes))
    table, places = (weights[f"model.embeddings.{name}_embeddings.weight"] for name in ("word", "position"))
    first = places[0] + weights["model.embeddings.token_type_embeddings.weight"][0]
    told, null = (table[codes + 1 + one] + first for one in (recorded["condition"], torch.tensor(meta["null_class"])))
    context = Context(told[:, None], null=Context(null.expand(len(told), 1, -1)))
    return Recorded(network, context, recorded, meta)


def test_the_transformer_gives_the_recorded_logits(titok: Recorded) -> None:
    given = titok.tensors["masked_codes"].masked_fill(titok.tensors["mask"], -1)
    assert titok.context.null is not None
    for name, context in (("logits", titok.context), ("logits_null", titok.context.null)):
        with torch.no_grad():
            logits = titok.network.logits(given, context)
        assert (logits - titok.tensors[name]).abs().max() <= titok.meta["tolerance_logits"]


@pytest.mark.parametrize(
    "name, settings",
    [
        ("", {}),
        # c + s (c - u) there is u + (s + 1) (c - u) here
        ("_guided", {"guidance": "guidance_scale", "more": 1}),
        ("_guided_linear", {"guidance": "guidance_scale_linear", "more": 1, "guidance_schedule": "linear"}),
        (
            "_guided_power_cosine",
            {"guidance": "guidance_scale_power_cosine", "guidance_schedule": "cosine", "guidance_power": "pow"},
        ),
    ],
)
def test_the_likeliest_codes_are_the_recorded_ones(titok: Recorded, name: str, settings: dict[str, Any]) -> None:
    meta, chosen = titok.meta, dict(settings)
    if "guidance" in chosen:
        chosen["guidance"] = meta[chosen["guidance"]] + chosen.pop("more", 0)
    if "guidance_power" in chosen:
        chosen["guidance_power"] = meta["guidance_scale_pow"]
    sampler = MaskedSampler(
        temperature=0,
        choice_temperature=0,
        confidence="logit",
        schedule="arccos",
        steps=meta["num_sample_steps"],
        logit_temperature=(1.3, 0.5),  # changes no choice
        **chosen,
    )
    wanted = titok.tensors[f"greedy_codes{name}"]
    seen: list[Tensor] = []
    hook = titok.network.register_forward_hook(lambda module, given, out: seen.append(given[0][: len(wanted)].clone()))
    with torch.inference_mode():
        codes = titok.network.generate(torch.full_like(wanted, -1), titok.context, sampler, no_noise(len(wanted)))
    hook.remove()
    assert torch.equal(codes, wanted)
    if f"greedy_steps{name}" in titok.tensors:
        steps = titok.tensors[f"greedy_steps{name}"]
        found = torch.stack([*seen[1:], codes])
        assert torch.equal(found, steps.masked_fill(steps == meta["mask_token"], -1))


def test_guidance_rises_as_recorded_of_rar() -> None:
    for folder in sorted((SHARED / "golden" / "rar").iterdir()):
        meta = json.loads((folder / "meta.json").read_text())
        recorded = load_file(folder / "io.safetensors")["guidance_schedule"]
        sampler = Sampler(
            guidance=meta["guidance_scale"], guidance_schedule="cosine", guidance_power=meta["guidance_scale_pow"]
        )
        found = [guidance_at(sampler, step / len(recorded)) for step in range(len(recorded))]
        torch.testing.assert_close(torch.tensor(found), recorded.float(), atol=1e-5, rtol=1e-5)


def no_noise(rows: int) -> Noise:
    """What decides nothing where the likeliest codes are taken."""
    return lambda draw, count: torch.full((rows, count), 0.5)


def test_the_schedule_leaves_as_many_masked_as_recorded() -> None:
    recorded = load_file(FOLDER / "io.safetensors")
    names = [name for name in recorded if name.startswith("left_masked")]
    assert names
    for name in names:
        count, steps = (int(part[1:]) for part in name.split("_")[2:])
        unknown, found = torch.tensor([count]), []
        now = unknown
        for step in range(steps):
            now = left_masked(unknown, now, step, MaskedSampler(steps=steps, schedule="arccos"))
            found.append(int(now))
        assert found == recorded[name].tolist(), name


def test_halton_s_schedule_knows_as_many_as_recorded() -> None:
    recorded = load_file(SHARED / "golden" / "halton-maskgit" / "order" / "io.safetensors")
    names = [name for name in recorded if name.startswith("known")]
    assert names
    for name in names:
        side, steps = int(name.split("_")[1].split("x")[0]), int(name.split("_s")[1])
        sampler = MaskedSampler(steps=steps, schedule="arccos", rounding="up")
        now, found = torch.tensor([side**2]), []
        for step in range(steps):
            now = left_masked(torch.tensor([side**2]), now, step, sampler)
            found.append(side**2 - int(now))
        assert found == recorded[name].tolist(), name


def test_halton_s_order_is_the_recorded_one() -> None:
    recorded = load_file(SHARED / "golden" / "halton-maskgit" / "order" / "io.safetensors")
    orders = {name: value for name, value in recorded.items() if name.startswith("halton_order")}
    assert orders
    for name, order in orders.items():
        size = int(name.split("_")[2].split("x")[0])
        found = halton_order(CodeLayout(((size, size),), 1, (2,)))
        assert torch.equal(torch.stack((found // size, found % size), dim=1), order.long()), name
