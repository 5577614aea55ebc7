"""VAR's and RQ-Transformer's published files, altered: strict keys, configs that contradict, what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import prior
import tokenizers_vq as tvq
from prior.conversion import Book
from prior.decoding import decode
from tests.conftest import shared
from tests.golden.priors import levels_book, scales_book
from tokenizers_vq.config import read_yaml

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def var() -> tuple[Tensors, Book]:
    folder = shared("golden/var-transformer/l2-norm")
    book = scales_book(folder)
    assert book is not None
    return load_file(folder / "weights.safetensors"), book


@pytest.fixture(scope="module")
def rq() -> tuple[Tensors, dict[str, Any], Book]:
    folder = shared("golden/rq-transformer/class")
    tensors = torch.load(folder / "model.pt", weights_only=True)["state_dict"]
    return tensors, read_yaml(folder / "config.yaml"), levels_book(folder)


def without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != key}


def refusal(source: str, tensors: Tensors, folder: Path, config: Any, book: Book | None) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "weights.safetensors")
    with pytest.raises(ValueError) as caught:
        prior.convert(source, folder / "weights.safetensors", config, book=book)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        (
            without("blocks.1.ffn.fc1.bias"),
            None,
            "(in the file: blocks.1.ffn.fc1.bias)",
        ),
        (lambda tensors: {**tensors, "extra.weight": torch.zeros(2)}, None, "surplus extra.weight"),
        (lambda tensors: {**tensors, "pos_start": torch.zeros(1, 2, 32)}, None, "pos_start is (2, 32), wanted (1, 32)"),
        (
            lambda tensors: {**tensors, "blocks.0.attn.zero_k_bias": torch.ones(32)},
            None,
            "biases of keys",
        ),
        (without("lvl_1L"), None, "give a config with patch_nums"),
        (without("lvl_1L"), {"patch_nums": [1, 2, 3]}, "scales of sides [1, 2, 3] have not the 39 places"),
        (without("head.weight"), None, "has no head.weight"),
        (without("word_embed.weight"), None, "has no word_embed.weight"),
        (lambda tensors: tensors, {"depth": 3}, "the config says depth 3, its tensors 2"),
        (lambda tensors: tensors, {"patch_nums": [1, 2, 4, 5]}, "the config says patch_nums (1, 2, 4, 5)"),
        (lambda tensors: tensors, {"width": 3}, "its config has none of depth"),
    ],
)
def test_altered_files_of_var_are_refused(
    change: Callable[[Tensors], Tensors], config: Any, says: str, var: tuple[Tensors, Book], tmp_path: Path
) -> None:
    assert says in refusal("var-transformer", change(var[0]), tmp_path, config, var[1])


def test_var_needs_its_tokenizer(var: tuple[Tensors, Book], rq: Any, tmp_path: Path) -> None:
    assert "give that too, with --tokenizer" in refusal("var-transformer", var[0], tmp_path, None, None)
    assert "predicts the codes of a multi-scale quantizer" in refusal("var-transformer", var[0], tmp_path, None, rq[2])


def test_var_without_norms_tells_its_heads_in_the_config_alone(var: tuple[Tensors, Book], tmp_path: Path) -> None:
    plain = {name: tensor for name, tensor in var[0].items() if not name.endswith("scale_mul_1H11")}
    assert "give its config, with num_heads" in refusal("var-transformer", plain, tmp_path, None, var[1])
    made = prior.convert("var-transformer", tmp_path / "weights.safetensors", {"num_heads": 4}, book=var[1])
    assert made.config.network.heads == 4 and not made.config.network.attn_l2_norm


def test_var_of_a_training_s_tensors_by_name(var: tuple[Tensors, Book], tmp_path: Path) -> None:
    inside = {f"trainer.var_wo_ddp.{name}": tensor for name, tensor in var[0].items() if name != "lvl_1L"}
    save_file(inside, tmp_path / "all.safetensors")
    made = prior.convert("var-transformer", tmp_path / "all.safetensors", {"patch_nums": [1, 2, 3, 5]}, book=var[1])
    assert made.layout.grids == ((1, 1), (2, 2), (3, 3), (5, 5))


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        (without("classifier.linear.bias"), {}, "missing network.head.bias"),
        (without("body_transformer.blocks.1.attn.key.bias"), {}, "missing body_transformer.blocks.1.attn.key.bias"),
        (lambda tensors: {**tensors, "extra.weight": torch.zeros(2)}, {}, "surplus extra.weight"),
        (lambda tensors: {**tensors, "tok_emb.weight": torch.zeros(48, 32)}, {}, "embeddings of codes of its own"),
        (without("pos_emb_hw"), {}, "has no pos_emb_hw"),
        (lambda tensors: tensors, {"cumsum_depth_ctx": False}, "cumsum_depth_ctx: no published model has it"),
        (lambda tensors: tensors, {"block_size": [3, 4, 4]}, "has 9 positions, which a grid of 3x4 has not"),
        (lambda tensors: tensors, {"block_size": [3, 3, 3]}, "the config says block_size (3, 3, 3)"),
        (lambda tensors: tensors, {"vocab_size": [48, 48, 48, 47]}, "the config says vocab_size [48, 48, 48, 47]"),
        (lambda tensors: tensors, {"head": {"block": {"n_head": 4}}}, "2 heads in its body, 4 in its head"),
        (lambda tensors: tensors, {"body": {"n_layer": 2, "block": {}}}, "give its config, with n_head"),
        (lambda tensors: tensors, {"body": {"block": {"n_head": 2, "gelu": "v2"}}}, "gelu v2: no published model"),
    ],
)
def test_altered_files_of_rq_are_refused(
    change: Callable[[Tensors], Tensors], config: Any, says: str, rq: Any, tmp_path: Path
) -> None:
    tensors, published, book = rq
    described = {"arch": {**published["arch"], **config}}
    assert says in refusal("rq-transformer", change(tensors), tmp_path, described, book)


def test_rq_needs_its_tokenizer(rq: Any, var: tuple[Tensors, Book], tmp_path: Path) -> None:
    assert "give that too, with --tokenizer" in refusal("rq-transformer", rq[0], tmp_path, rq[1], None)
    assert "the scales end in a grid of 5x5" in refusal("rq-transformer", rq[0], tmp_path, rq[1], var[1])


@torch.no_grad()
def test_rq_with_a_last_layer_for_each_level(rq: Any, tmp_path: Path) -> None:
    tensors, config, book = rq
    apart = dict(tensors)
    apart["classifier.linear.weight"] = tensors["classifier.linear.weight"].T.repeat(4, 1, 1)
    apart["classifier.linear.bias"] = tensors["classifier.linear.bias"].repeat(4, 1)
    torch.save({"state_dict_ema": apart}, tmp_path / "apart.pt")
    torch.save({"state_dict": tensors}, tmp_path / "shared.pt")
    made = prior.convert("rq-transformer", tmp_path / "apart.pt", config, book=book)
    plain = prior.convert("rq-transformer", tmp_path / "shared.pt", config, book=book)
    assert not made.config.network.shared_head
    tokens = torch.randint(48, (2, made.layout.length))
    torch.testing.assert_close(made.logits(tokens, 3), plain.logits(tokens, 3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["l2-norm", "shared-adaln"])
def test_var_and_its_tokenizer_make_the_recorded_pictures(case: str, tmp_path: Path) -> None:
    folder = shared(f"golden/var-transformer/{case}")
    io, meta = load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text())
    weights = next(path for path in (folder / "weights.safetensors", folder / "model.pt") if path.exists())
    other = folder / "vae.safetensors"
    config = json.loads((folder / "config.json").read_text())
    scales = {"v_patch_nums": config["patch_nums"]}
    tvq.convert("var", other if other.exists() else weights, scales).save_pretrained(tmp_path / "tokenizer")
    made = prior.convert("var-transformer", weights, config, tokenizer=tmp_path / "tokenizer")
    tokenizer = tvq.load(tmp_path / "tokenizer")
    assert made.config.fingerprint == tokenizer.fingerprint
    for name, guidance in (("greedy_images", 1.0), ("greedy_images_guided", 1 + meta["guidance_scale"])):
        tokens = made.sample(len(io["condition"]), io["condition"], temperature=0, guidance=guidance)
        images = decode(tokenizer, made, tokens)
        assert (images - io[name]).abs().max() <= meta["tolerance_images"]
