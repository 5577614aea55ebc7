"""The whole road through the commands with codes of several levels and several grids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prior
import tokenizers_vq as tvq
from prior.cli import main as prior_main
from tests.prior.conftest import SMALL
from tokenizers_vq.cli import main
from tokenizers_vq.data.shards import read_codes

_NETWORK = "{kind: vqgan, width: 8, multipliers: [1, 1, 2], blocks: 1, groups: 4, latent_width: 8}"
QUANTIZERS = {
    "residual": "{kind: residual, levels: 3, num_codes: [16, 12, 8], dim: 4, revive_after: 4}",
    "multiscale": "{kind: multiscale, scales: [1, 2, [3, 2], 4], book: {kind: bsq, bits: 4}}",
}
MODELS = {
    name: [f"model.encoder={_NETWORK}", f"model.decoder={_NETWORK}", f"model.quantizer={quantizer}", "adversary=null"]
    for name, quantizer in QUANTIZERS.items()
}
MODELS["hierarchical"] = [
    *(f"model.{part}={{kind: vqvae2, width: 8, block_width: 4}}" for part in ("encoder", "decoder")),
    "model.quantizers.0.num_codes=12",
    "model.quantizers.1.num_codes=16",
]
MODELS["dvae"] = [
    *(f"model.{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "blocks=1")),
    "model.quantizer.num_codes=16",
    "losses=[{kind: logit_laplace}]",
]
RECIPES = {"hierarchical": "vqvae2-tiny-64", "dvae": "dvae-tiny-64"}
"""where it is not VQGAN's"""
LENGTHS = {"residual": 3 * 16, "multiscale": 1 + 4 + 6 + 16, "hierarchical": 4 + 16, "dvae": 16}
GRIDS = {"multiscale": "grid 3x2", "hierarchical": "grid 2x2"}
"""what a report calls one of several grids"""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 smooth pictures of 16x16 pixels in two classes."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(24):
        path = folder / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize((16, 16), 3).save(path)
    return folder


def run(command: Callable[[list[str]], object], *arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    assert not stop.value.code


@pytest.mark.parametrize("name", MODELS)
def test_from_training_to_samples(name: str, pictures: Path, tmp_path: Path) -> None:
    train = [
        "model.image_size=16",
        "losses=[{kind: l1}]",
        *MODELS[name],
        "steps=6",
        "precision=fp32",
        "data.workers=0",
        "image_every=6",
    ]
    run(
        main,
        "train",
        RECIPES.get(name, "vqgan-tiny-64"),
        *train,
        f"data={pictures}",
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
    )
    model = tvq.load(tmp_path / "run")
    layout = model.code_layout()
    assert layout.length == LENGTHS[name]
    measured = ["--data", pictures, "--lpips", "none", "--backbone", "none", "--device", "cpu"]
    run(main, "report", tmp_path / "run", *measured, "--out", tmp_path / "report")
    streams = json.loads((tmp_path / "report" / "report.json").read_text())["usage"]["streams"]
    assert [stream["size"] for stream in streams] == list(layout.sizes)
    page = (tmp_path / "report" / "report.html").read_text()
    assert ("level 3" in page) == (name == "residual")
    assert ("grid " in page) == (name in GRIDS) and GRIDS.get(name, "") in page

    run(main, "encode", tmp_path / "run", pictures, "--out", tmp_path / "codes", "--device", "cpu")
    codes = read_codes(tmp_path / "codes")
    assert codes.layout == layout and len(codes) == 24
    run(main, "decode", tmp_path / "codes", "--out", tmp_path / "decoded", "--device", "cpu")
    assert len(list((tmp_path / "decoded").rglob("*.png"))) == 24

    small = [override for override in SMALL if not override.startswith("steps")]
    run(prior_main, "train", "gpt-tiny", tmp_path / "codes", *small, "steps=3", "--out", tmp_path / "prior")
    run(prior_main, "sample", tmp_path / "prior", "--out", tmp_path / "samples", "--grid", "1x2", "--codes")
    told = json.loads((tmp_path / "samples" / "samples.json").read_text())
    tokens = torch.tensor([entry["codes"] for entry in told["images"]])
    assert tokens.shape == (2, layout.length)
    assert (tokens < torch.tensor(layout.sizes)[layout.streams()]).all()
    assert prior.load(tmp_path / "prior").layout == layout
    assert model.decode(layout.unflatten(tokens)).shape == (2, 3, 16, 16)


def narrow(preset: str, *overrides: str) -> tvq.Tokenizer:
    fields = [f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "groups=4", "blocks=1")]
    return tvq.create(preset, [*fields, "quantizer.num_codes=32", *overrides]).eval()


SCALES = ["image_size=[16, 24]", "quantizer.scales=[1, [2, 2], [2, 3]]"]


@pytest.mark.parametrize(("preset", "fields"), [("rqvae-tiny-64", []), ("var-tiny-64", SCALES)])
def test_what_is_saved_comes_back_and_training_alone_changes_no_fingerprint(
    preset: str, fields: list[str], tmp_path: Path
) -> None:
    tokenizer, images = narrow(preset, "quantizer.revive_after=null", *fields), torch.rand(2, 3, 16, 24) * 2 - 1
    before = tokenizer.fingerprint
    if preset.startswith("var"):  # whose codebook no forward moves
        tokenizer.train()(images)
        assert tokenizer.eval().quantizer.codebook.age.max() > 0
        assert tokenizer.fingerprint == before
    tokenizer.save_pretrained(tmp_path)
    loaded = tvq.load(tmp_path)
    layout, codes = tokenizer.code_layout(16, 24), tokenizer.encode(images)
    assert loaded.config == tokenizer.config and loaded.fingerprint == before
    assert torch.equal(layout.flatten(loaded.encode(images)), layout.flatten(codes))
    with torch.no_grad():
        forward = tokenizer(images).images
    assert torch.equal(loaded.decode(codes), forward.clamp(-1, 1))


def test_images_of_other_sizes_are_taken_or_refused_by_name() -> None:
    wide = torch.rand(1, 3, 16, 40) * 2 - 1
    codes = narrow("rqvae-tiny-64").encode(wide)
    assert codes.shape == (1, 2, 5, 4)
    var = narrow("var-tiny-64", *SCALES)
    with pytest.raises(ValueError, match="scales end in a grid of 2x3, the features' is 2x5"):
        var.encode(wide)
    coarse_first = var.encode(torch.rand(1, 3, 16, 24) * 2 - 1)
    assert [part.shape for part in coarse_first] == [(1, 1, 1), (1, 2, 2), (1, 2, 3)]
    first_scales = var.decode_features(var.quantizer.partial(coarse_first, 2))
    assert torch.equal(var.decode(coarse_first[:-1]), first_scales.clamp(-1, 1))
    for wrong in (coarse_first[-1], coarse_first[1:], tuple(part[0] for part in coarse_first)):
        with pytest.raises(ValueError, match="codes must be"):
            var.decode(wrong)
