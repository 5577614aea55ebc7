"""Published GPTs beyond their recorded logits: orders, what stands before the codes, files that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import prior
from prior.networks.gpt import Gpt
from prior.sampling import Sampler, guidance_at
from tests.conftest import shared
from tests.golden.test_priors import config, recorded, weights
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
