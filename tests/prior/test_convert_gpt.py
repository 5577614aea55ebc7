"""Published GPTs beyond their recorded logits: orders, what stands before the codes, files that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import prior
from prior.networks.gpt import Gpt
from prior.sampling import Sampler, guidance_at
from tests.conftest import shared
from tests.golden.test_priors import config, recorded, weights
from tests.prior.conftest import save_tokenizer
from tokenizers_vq.config import read_json, read_yaml

Change = Callable[[dict[str, Tensor]], None]


def tensors_of(case: str) -> dict[str, Tensor]:
    file = weights(shared(f"golden/{case}"))
    assert file is not None
    if file.suffix == ".safetensors":
        return load_file(file)
    found = torch.load(file, weights_only=True)
    return found.get("state_dict", found.get("model", found))


def config_of(case: str) -> dict[str, Any]:
    path = config(shared(f"golden/{case}"))
    assert path is not None
    return read_json(path) if path.suffix == ".json" else read_yaml(path)


def converted(case: str, tmp_path: Path, made: Any = None, change: Change | None = None) -> prior.Prior:
    """The case with a changed config (a mapping) and changed tensors."""
    tensors = tensors_of(case)
    if change is not None:
        change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "model.safetensors")
    given = config_of(case) if made is None else made
    return prior.convert(case.split("/")[0], tmp_path / "model.safetensors", given)


@pytest.mark.parametrize("case", ["rar/plain", "rar/narrow-pt"])
def test_rar_gives_the_recorded_logits_in_any_order(case: str) -> None:
    shared("golden/rar")
    found = recorded(case)
    network, order = found.prior.network, found.io["order"]
    assert isinstance(network, Gpt)
    with torch.no_grad():
        context = found.prior.context(found.condition, len(order))
        logits = network.logits_in(found.io["input_codes"], context, order)
    assert (logits - found.io["logits_order"]).abs().max() <= found.meta["tolerance_logits"]
    assert torch.equal(found.io["input_codes"].gather(1, order), found.io["order_codes"])
    sampler = Sampler(temperature=0, **found.how.guidance(found.meta))
    factors = found.io["guidance_schedule"]
    ours = torch.tensor([guidance_at(sampler, place / len(factors)) for place in range(len(factors))])
    torch.testing.assert_close(ours, factors, atol=1e-5, rtol=1e-5)


def test_llamagen_masks_no_text_as_the_text() -> None:
    shared("golden/llamagen-gpt")
    found = recorded("llamagen-gpt/t2i")
    features, mask = found.condition, torch.ones(2, 6, dtype=torch.bool)
    mask[0, :4] = False
    condition = found.prior.condition
    with torch.no_grad():
        guided = condition(features, mask).guided()
        assert guided.mask is not None and torch.equal(guided.mask, mask.repeat(2, 1))
        changed = features.clone()
        changed[0, :4] = 7.0
        tokens = found.io["input_codes"].repeat(2, 1)
        logits = found.prior.network.logits(tokens, guided)
        again = found.prior.network.logits(tokens, condition(changed, mask).guided())
    torch.testing.assert_close(again, logits, atol=1e-5, rtol=1e-5)  # padding is nothing to either half
    assert condition(*condition.nothing(1)).mask.all()


def _taming(**changes: Any) -> dict[str, Any]:
    """The recorded config with parameters of the model changed; those of its transformer as `transformer_...`."""
    made = config_of("taming-gpt/class")
    params = made["model"]["params"]
    for name, value in changes.items():
        inner = name.removeprefix("transformer_")
        (params if inner == name else params["transformer_config"]["params"])[inner] = value
    return made


def test_taming_without_a_condition_begins_with_a_code(tmp_path: Path) -> None:
    case = "taming-gpt/class"
    told, tokens = converted(case, tmp_path), recorded(case).io["input_codes"]
    for made, code in (
        ({"cond_stage_config": "__is_unconditional__"}, 0),
        ({"unconditional": True, "sos_token": 7}, 7),
    ):
        free = converted(case, tmp_path, _taming(**made))
        with torch.no_grad():
            torch.testing.assert_close(free.logits(tokens), told.logits(tokens, code), atol=1e-6, rtol=1e-6)
    assert converted(case, tmp_path, _taming(pkeep=0.9)).config.network.to_dict()["token_noise"] == pytest.approx(0.1)


def _opened(count: int) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        for key in tensors:
            if key.endswith(".attn.mask"):
                tensors[key] = tensors[key].clone()
                tensors[key][:, :, :count, :count] = 1

    return change


def _without(key: str) -> Change:
    return lambda tensors: tensors.__delitem__(key)


def _with(key: str, *shape: int) -> Change:
    return lambda tensors: tensors.update({key: torch.zeros(shape)})


LLAMAGEN = {"n_head": 2, "block_size": 16}


def _rar(**fields: Any) -> dict[str, Any]:
    return {"model": {"generator": {"hidden_size": 48, "image_seq_len": 16, **fields}}}


@pytest.mark.parametrize(
    ("case", "made", "change", "says"),
    [
        ("llamagen-gpt/c2i", {"block_size": 16}, None, "heads of a width of 64 is not in the file: give a config with"),
        ("llamagen-gpt/c2i", {"n_head": 2}, None, "how many codes an image has is not in the file: give its tokenizer"),
        ("llamagen-gpt/c2i", {**LLAMAGEN, "num_classes": 9}, None, "config says num_classes 9, its tensors 10"),
        ("llamagen-gpt/c2i", {**LLAMAGEN, "dim": 32}, None, "config says dim 32, its tensors 64"),
        ("llamagen-gpt/c2i", {**LLAMAGEN, "model_type": "t2i"}, None, "config says model_type t2i"),
        ("llamagen-gpt/c2i", LLAMAGEN, _without("norm.weight"), "missing network.norm.weight"),
        ("llamagen-gpt/c2i", LLAMAGEN, _with("norm.bias", 64), "surplus norm.bias"),
        ("llamagen-gpt/c2i", LLAMAGEN, _without("layers.1.feed_forward.w3.weight"), "missing .*w3.*needs beside it"),
        ("llamagen-gpt/c2i", {"n_layers": 2}, None, "its config has none of dim, n_layer"),
        ("taming-gpt/class", {}, None, "heads and condition are not in the file: give its config"),
        ("taming-gpt/class", {"transformer_n_embd": 64}, None, "config says n_embd 64, its tensors 32"),
        ("taming-gpt/class", {"permuter_config": {"target": "a.ZCurve"}}, None, r"another order \(a.ZCurve\)"),
        ("taming-gpt/class", {"cond_stage_config": None}, None, "no cond_stage_config, which says what stands before"),
        ("taming-gpt/class", {"unconditional": True, "sos_token": 64}, None, "sos_token 64 is none of 64 codes"),
        ("taming-gpt/class", {"pkeep": 1.0}, _opened(3), r"open over the 1 places of the condition \(n_unmasked\)"),
        (
            "taming-gpt/class",
            {"pkeep": 1.0},
            _without("transformer.ln_f.bias"),
            "missing network.norm.bias .*ln_f",
        ),
        (
            "rar/plain",
            _rar(hidden_size=64),
            None,
            "hidden_size 64, its tensors 48",
        ),
        (
            "rar/plain",
            _rar(image_seq_len=9),
            None,
            "image_seq_len 9, its tensors",
        ),
        ("rar/plain", None, _without("blocks.1.mlp.fc1.weight"), "missing network.blocks.1.up.weight"),
        ("rar/plain", None, _with("pos_embed", 1, 1039, 48), "do not fit 64 codes: 1024 positions more than codes"),
        ("rar/plain", None, _with("blocks.0.extra.weight", 2, 2), "surplus blocks.0.extra.weight"),
        ("rar/plain", None, _without("cls_token"), "has no cls_token"),
    ],
)
def test_what_does_not_fit_is_one_line(
    case: str, made: dict[str, Any] | None, change: Change | None, says: str, tmp_path: Path
) -> None:
    shared(f"golden/{case}")
    if case.startswith("taming") and made:
        made = _taming(**made)
    with pytest.raises(ValueError, match=says) as error:
        converted(case, tmp_path, made, change)
    assert "\n" not in str(error.value)


def _mingpt(tensors: Mapping[str, Tensor], tokens: Tensor, heads: int, opened: int) -> Tensor:
    """Logits `(B, n, K)` of taming's GPT over codes of both pictures, from its formulas."""
    x = tensors["tok_emb.weight"][tokens] + tensors["pos_emb"][0, : tokens.shape[1]]
    mask = torch.ones(x.shape[1], x.shape[1]).tril().bool()
    mask[:opened, :opened] = True

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    for block in ("blocks.0", "blocks.1"):
        y = norm(x, f"{block}.ln1")
        q, k, v = (linear(y, f"{block}.attn.{name}").unflatten(-1, (heads, -1)) for name in ("query", "key", "value"))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        x = x + linear(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.ln2"), f"{block}.mlp.0")), f"{block}.mlp.2")
    return linear(norm(x, "ln_f"), "head")


@pytest.mark.parametrize("opened", [0, 9])
def test_taming_is_told_codes_of_another_picture(opened: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    width, codes, places = 16, 11, 9 + 16
    shapes = {"tok_emb.weight": (codes, width), "pos_emb": (1, places, width), "head.weight": (codes, width)}
    shapes |= {f"ln_f.{kind}": (width,) for kind in ("weight", "bias")}
    for block in ("blocks.0", "blocks.1"):
        shapes |= {f"{block}.{name}.{kind}": (width,) for name in ("ln1", "ln2") for kind in ("weight", "bias")}
        for name, out, into in (
            *((f"attn.{part}", width, width) for part in ("query", "key", "value", "proj")),
            ("mlp.0", 4 * width, width),
            ("mlp.2", width, 4 * width),
        ):
            shapes |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
    tensors = {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    mask = torch.ones(places, places).tril()
    mask[:opened, :opened] = 1
    file = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    file |= {f"transformer.blocks.{block}.attn.mask": mask[None, None].clone() for block in range(2)}
    file["cond_stage_model.encoder.conv_in.weight"] = torch.zeros(2, 2)
    save_file(file, tmp_path / "model.safetensors")
    made = {"transformer_config": {"params": {"n_head": 2, "block_size": places, "vocab_size": codes}}}
    made["cond_stage_config"] = {"target": "taming.models.vqgan.VQModel"}
    tokenizer = save_tokenizer(tmp_path / "tokenizer", 1, codes=codes)
    found = prior.convert(
        "taming-gpt", tmp_path / "model.safetensors", {"model": {"params": made}}, tokenizer=tokenizer
    )
    assert found.layout.grids == ((4, 4),) and found.config.condition.to_dict()["layout"]["grids"] == [[3, 3]]
    told, tokens = torch.randint(0, codes, (2, 9)), torch.randint(0, codes, (2, 16))
    wanted = _mingpt(tensors, torch.cat((told, tokens), dim=1)[:, :-1], 2, opened)[:, 8:]
    with torch.no_grad():
        torch.testing.assert_close(found.logits(tokens, told), wanted, atol=1e-5, rtol=1e-5)
        greedy = found.sample(2, told.view(2, 3, 3), temperature=0)
        logits = _mingpt(tensors, torch.cat((told, greedy), dim=1)[:, :-1], 2, opened)[:, 8:]
    assert torch.equal(logits.argmax(dim=-1), greedy)
