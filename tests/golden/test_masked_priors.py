"""MaskGIT's transformer, schedule and Halton's order against recordings of their references."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prior.conditions import Context
from prior.networks.masked import MaskedSampler, halton_order, left_masked
from prior.networks.maskgit import MaskGitConfig
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


def test_the_transformer_gives_the_recorded_logits() -> None:
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
    given = recorded["masked_codes"].masked_fill(recorded["mask"], -1)
    for name, classes in (("logits", recorded["condition"]), ("logits_null", torch.tensor(meta["null_class"]))):
        vectors = table[codes + 1 + classes].expand(len(given), -1) + first
        with torch.no_grad():
            logits = network.logits(given, Context(vectors[:, None]))
        assert (logits - recorded[name]).abs().max() <= meta["tolerance_logits"]


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


def test_halton_s_order_is_the_recorded_one() -> None:
    recorded = load_file(SHARED / "golden" / "halton-maskgit" / "order" / "io.safetensors")
    orders = {name: value for name, value in recorded.items() if name.startswith("halton_order")}
    assert orders
    for name, order in orders.items():
        size = int(name.split("_")[2].split("x")[0])
        found = halton_order(CodeLayout(((size, size),), 1, (2,)))
        assert torch.equal(torch.stack((found // size, found % size), dim=1), order.long()), name
