"""The first codes of an image: as layouts describe them, decoded, encoded to shards, measured, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenizers_vq as tvq
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.shards import read_codes
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.tokenizer import Tokenizer, TokenizerConfig

CONVS: dict[str, Any] = {"kind": "vqvae", "width": 8, "block_width": 4, "blocks": 1}
TITOK: dict[str, Any] = {"kind": "titok", "tokens": 6, "patch": 8, "width": 16, "layers": 1, "heads": 2}
VECTOR: dict[str, Any] = {"kind": "vector", "num_codes": 16, "dim": 4}
QUANTIZERS: dict[str, dict[str, Any]] = {
    "residual": {"kind": "residual", "levels": 3, "book": VECTOR},
    "multiscale": {"kind": "multiscale", "scales": [1, 2, 4], "phis": 1, "book": VECTOR},
    "bits": {
        "kind": "multiscale",
        "scales": [1, 2, 4],
        "phis": 0,
        "confine": "each",
        "book": {"kind": "bsq", "bits": 8, "code_bits": 4},
    },
    "flat": VECTOR,
    "product": {"kind": "product", "groups": 2, "book": VECTOR},
}


def made(name: str) -> Tokenizer:
    torch.manual_seed(0)
    if name in ("row", "row-whole"):
        tails = {"tail_dropout": 0.5} if name == "row" else {}
        config = TokenizerConfig(image_size=16, encoder=TITOK, quantizer=VECTOR, decoder={**TITOK, **tails})
    else:
        config = TokenizerConfig(image_size=16, encoder=CONVS, quantizer=QUANTIZERS[name], decoder=CONVS)
    tokenizer = Tokenizer(config).eval()
    for parameter in tokenizer.quantizer.parameters():
        parameter.data.normal_()
    return tokenizer


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16) * 2 - 1


def test_a_layout_s_prefix_is_its_first_grids_levels_or_codes() -> None:
    scales = CodeLayout(((1, 1), (2, 2), (4, 4)), 2, (5, 6, 7, 8, 9, 10))
    assert scales.steps == 3 and scales.prefix(2) == CodeLayout(((1, 1), (2, 2)), 2, (5, 6, 7, 8))
    levels = CodeLayout(((4, 4),), 3, (5, 6, 7))
    assert levels.steps == 3 and levels.prefix(2) == CodeLayout(((4, 4),), 2, (5, 6)) and levels.prefix(3) == levels
    row = CodeLayout(((6,),), 1, (16,))
    assert row.steps == 6 and row.prefix(4) == CodeLayout(((4,),), 1, (16,)) and row.prefix(4).bits == 16
    for wrong in (0, 7, 2.0, None):
        with pytest.raises(ValueError, match=r"a prefix of this layout keeps 1 to 6, got "):
            row.prefix(wrong)  # type: ignore[arg-type]
    grid = CodeLayout(((4, 4),), 1, (5,))
    with pytest.raises(ValueError, match="codes on one grid have no first ones that stand for an image"):
        grid.prefix(1)
    assert grid.steps == 0
    assert torch.equal(row.cut(torch.arange(12).view(2, 6), 2), torch.tensor([[0, 1], [6, 7]]))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["residual", "multiscale", "bits", "row"])
def test_decode_takes_what_a_prefix_describes(name: str) -> None:
    tokenizer = made(name)
    codes, layout = tokenizer.encode(images()), tokenizer.code_layout()
    assert tokenizer.prefixes == layout.steps > 1
    decoded = []
    for kept in range(1, layout.steps + 1):
        first = layout.cut(codes, kept)
        prefix = layout.prefix(kept)
        again = prefix.unflatten(prefix.flatten(first))
        decoded.append(tokenizer.decode(again))
        assert decoded[-1].shape == (2, 3, 16, 16)
        if name != "row":
            parts = codes if isinstance(codes, tuple) else codes[..., :kept]
            vectors = tokenizer.quantizer.partial(parts[:kept] if isinstance(parts, tuple) else parts, kept)
            assert torch.equal(decoded[-1], tokenizer.decode_features(vectors))
    assert torch.equal(decoded[-1], tokenizer.decode(codes))
    assert not torch.equal(decoded[0], decoded[-1])


def test_what_has_no_first_codes_is_refused_in_one_line() -> None:
    for name in ("flat", "product", "row-whole"):
        tokenizer = made(name)
        assert tokenizer.prefixes == 0
        with pytest.raises(ValueError, match=r"keep=1: this tokenizer's codes stand for an image only together"):
            BatchEncoder(tokenizer, keep=1, device="cpu")
    with pytest.raises(ValueError, match="keep=4: give 1 to 3 for this tokenizer"):
        BatchEncoder(made("residual"), keep=4, device="cpu")
    codes = made("product").encode(images())
    with pytest.raises(ValueError, match="codes must"):
        made("product").decode(codes[..., :1])
    with pytest.raises(ValueError, match=r"an image has 6 codes here, got \(3,\)"):
        made("row-whole").decode(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="codes must"):  # one image's, without its batch
        made("residual").decode(made("residual").encode(images())[0])


def test_tails_are_dropped_in_training_alone() -> None:
    tokenizer, features = made("row"), torch.randn(2, 4, 6)
    assert torch.equal(tokenizer.decoder(features), tokenizer.decoder(features))
    tokenizer.train()
    torch.manual_seed(0)
    different = {float(tokenizer.decoder(features).sum()) for _ in range(40)}
    assert 4 <= len(different) <= 7  # whole, or cut to one of 1 to 6
    assert tokenizer(images()).quantized.codes.shape == (2, 6)


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        array = torch.randint(256, (16, 16, 3), dtype=torch.uint8).numpy()
        tvq.images.to_pil(torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ["residual", "multiscale", "row"])
def test_shards_hold_the_first_codes_alone(name: str, tmp_path: Path) -> None:
    tokenizer, data = made(name), pictures(tmp_path / "data")
    tvq.encode_folder(tokenizer, data, tmp_path / "all", device="cpu", precision="fp32")
    tvq.encode_folder(tokenizer, data, tmp_path / "two", keep=2, device="cpu", precision="fp32")
    whole, first = read_codes(tmp_path / "all"), read_codes(tmp_path / "two")
    assert first.layout == tokenizer.code_layout().prefix(2)
    codes, tokens = whole.layout.unflatten(whole[[0, 1, 2]]), first[[0, 1, 2]]
    assert torch.equal(first.layout.flatten(whole.layout.cut(codes, 2)), tokens)
    assert tokenizer.decode(first.layout.unflatten(tokens)).shape == (3, 3, 16, 16)


def test_compare_draws_quality_over_codes_kept(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    models = {"row": made("row"), "flat": made("flat")}
    options: dict[str, Any] = {"size": 16, "codecs": (), "device": "cpu", "lpips": None, "backbone": None}
    result = tvq.compare(models, data, tmp_path / "out", keep=(1, 3), **options)
    assert [row.name for row in result.rows] == ["row, first 1", "row, first 3", "row", "flat"]
    assert [row.bits_per_pixel * 256 for row in result.rows] == [4, 12, 24, 64]
    assert [row.family for row in result.rows] == ["row", "row", "row", "tokenizer"]
    with pytest.raises(ValueError, match="keep=9: give 1 to 6"):
        tvq.compare(models, data, keep=(9,), **options)
    with pytest.raises(ValueError, match="keep=2: this tokenizer's codes stand for an image only together"):
        tvq.compare({"flat": made("flat")}, data, keep=(2,), **options)
    whole, first = (
        tvq.evaluate(models["row"], data, keep=kept, device="cpu", lpips=None, backbone=None) for kept in (None, 2)
    )
    assert whole.metrics["psnr"].value != first.metrics["psnr"].value
