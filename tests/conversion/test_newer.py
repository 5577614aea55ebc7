"""Infinity, BitDance, WeTok, One-D-Piece and FVQ: what their files do not say, and what is refused, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import shared
from tests.golden.test_families import source
from tokenizers_vq.conversion import convert
from tokenizers_vq.conversion.checkpoint import read_config, read_tensors
from tokenizers_vq.models import preset_config
from tokenizers_vq.tokenizer import load_folder


def given(case: str) -> tuple[Path, dict[str, Any]]:
    weights, config = source(shared(f"golden/{case}"))
    return weights, read_config(config) or {}


def test_infinity_takes_scales_from_the_config_or_a_table() -> None:
    weights, config = given("infinity/square-8bits-pt")
    listed = convert("infinity", weights, config)
    original = convert("infinity", weights, {"schedule_mode": "original", "image_size": 64})
    assert listed.config == original.config and listed.config.image_size == 64
    dynamic = convert("infinity", weights)
    assert dynamic.config.image_size == 256 and dynamic.config.quantizer.grids[-1] == (64, 64)
    assert len(dynamic.config.quantizer.scales) == 13  # of 64x64 in the table
    wide = dynamic.resized((9 * 4, 27 * 4))
    assert wide.config.quantizer.grids == ((1, 1), (2, 2), (2, 6), (3, 9), (5, 15), (7, 21), (9, 27))
    frames = convert("infinity", weights, {"scale_schedule": [[1, *scale] for scale in config["scale_schedule"]]})
    assert frames.config == listed.config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"scale_schedule": [1, 2]}, r"scale_schedule must list heights and widths, \[\[1, 1\], \[2, 2\]\] say, got"),
        ({"image_size": 258}, "image_size must be a side, or height and width, that 4 divides, got 258"),
        ({"image_size": 40}, "schedule_mode 'dynamic' has no scales that end in 10x10: list them as scale_schedule"),
        ({"schedule_mode": "dense"}, "schedule_mode 'dense' has no scales that end in 64x64"),
        ({"v_patch_nums": [1, 2]}, "its config has none of scale_schedule, schedule_mode, image_size"),
    ],
)
def test_infinity_without_its_scales_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        convert("infinity", given("infinity/square-8bits-pt")[0], config)


def test_infinity_without_the_wrappers_of_its_layers_is_read_too(tmp_path: Path) -> None:
    weights, config = given("infinity/square-8bits-pt")
    tensors = read_tensors(weights, "vae")
    bare = {
        key.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias"): value for key, value in tensors.items()
    }
    bare = {key.replace(".norm.weight", ".weight").replace(".norm.bias", ".bias"): value for key, value in bare.items()}
    bare = {key: value for key, value in bare.items() if "mask" not in key}
    torch.save({"vae": bare}, tmp_path / "bare.pth")
    ours, theirs = (convert("infinity", path, config) for path in (tmp_path / "bare.pth", weights))
    assert ours.fingerprint == theirs.fingerprint
    bare.pop("encoder.norm_out.bias")
    torch.save({"vae": bare, "other": torch.zeros(1)}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"missing encoder\.norm\.bias"):
        convert("infinity", tmp_path / "less.pth", config)


def test_wetok_s_codes_are_said_by_the_config_alone(tmp_path: Path) -> None:
    weights, config = given("wetok/groups4-ema")
    whole = convert("wetok", weights, config)
    assert whole.code_layout(32, 48).levels == 4 and set(whole.code_layout(32, 48).sizes) == {32}
    assert convert("wetok", weights, {"n_embed": 32}).fingerprint == whole.fingerprint
    for wrong, said in [
        (None, "does not say how many codes its 20 bits make: give its config, or one with num_codebooks"),
        ({"num_codebooks": 3}, "3 codebooks do not divide its 20 bits"),
        ({"num_codebooks": 4, "n_embed": 64}, "the config says 4 codebooks of 64 codes, its tensors 20 bits"),
    ]:
        with pytest.raises(ValueError, match=said):
            convert("wetok", weights, wrong)


def test_bitdance_s_config_may_say_how_bits_are_split() -> None:
    weights, config = given("bitdance/t2i-64bits")
    layouts = [convert("bitdance", weights, c).code_layout(48, 32) for c in (config, None, {"num_codebooks": 8})]
    assert [(layout.levels, layout.sizes[0]) for layout in layouts] == [(2, 2**32), (2, 2**32), (8, 2**8)]
    imagenet, _ = given("bitdance/imagenet-gfq4-pt")
    assert convert("bitdance", imagenet).code_layout(32, 48).levels == 4
    with pytest.raises(ValueError, match=r"the config says z_channels 32, its tensors 64"):
        convert("bitdance", weights, {"ddconfig": {"z_channels": 32}})
    weights, config = given("bitdance/t2i-noise-decoder")
    with pytest.raises(ValueError, match="its decoder takes noise beside the 12 channels of a code"):
        convert("bitdance", weights, config)


def test_one_d_piece_decodes_prefixes_and_titok_does_not() -> None:
    weights, config = given("one-d-piece/small-16tokens")
    pieces, plain = convert("one-d-piece", weights, config), convert("titok", weights, config)
    codes = torch.randint(64, (2, 16))
    assert torch.equal(pieces.decode(codes), plain.decode(codes)) and pieces.fingerprint == plain.fingerprint
    assert not torch.equal(pieces.decode(codes[:, :3]), pieces.decode(codes))
    with pytest.raises(ValueError, match=r"an image has 16 codes here, got \(3,\)"):
        plain.decode(codes[:, :3])


def test_fvq_keeps_its_bridge_until_it_is_saved(tmp_path: Path) -> None:
    weights, _ = given("fvq/bridge-format-pt")
    tokenizer = convert("fvq", weights)
    assert tokenizer.config.quantizer.kind == "vqbridge"
    io = load_file(shared("golden/fvq/bridge-format-pt") / "io.safetensors")
    assert (tokenizer.quantizer.codebook - io["codebook_bridged"]).abs().max() <= 4e-5
    tokenizer.save_pretrained(tmp_path / "saved")
    folded = load_folder(tmp_path / "saved")
    assert sum(parameter.numel() for parameter in folded.parameters()) == 238_511  # the reference's, folded
    assert torch.equal(folded.encode(io["images"]), io["codes"]) and folded.fingerprint == tokenizer.fingerprint
    tensors = {**read_tensors(weights, "model"), "quantize.qbridge.pos_embed": torch.zeros(1, 16, 32)}
    torch.save({"model": tensors}, tmp_path / "dit.pt")
    with pytest.raises(ValueError, match=r"fold it with the reference's convert_fullvq2vq.py first"):
        convert("fvq", tmp_path / "dit.pt")


def test_fvq_s_codes_are_compared_as_they_are_unlike_llamagen_s() -> None:
    weights, _ = given("fvq/vqgan-format-pt")
    distances = {name: convert(name, weights).config.quantizer.distance for name in ("fvq", "llamagen")}
    assert distances == {"fvq": "euclidean", "llamagen": "cosine"}


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        # The reference's own classes, built at the commits of tests/golden.
        ("infinity-d16", 109_970_579),
        ("infinity-d24", 110_044_315),
        ("infinity-d32", 110_118_051),
        ("infinity-d64", 110_412_995),
        ("bitdance-f16-32bits", 460_294_179),
        ("wetok-f16", 460_294_179),
        ("one-d-piece-s256", 83_871_247),
        ("one-d-piece-b256", 205_256_463),
        ("fvq-f16-16384", 76_073_859),
        ("fvq-f16-65536", 88_656_771),
        ("fvq-f16-262144", 138_988_419),
    ],
)
def test_published_sizes_are_the_references(preset: str, count: int) -> None:
    with torch.device("meta"):
        tokenizer = preset_config(preset).folded().build()
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == count
