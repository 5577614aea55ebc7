"""Laws of whole tokenizers: save and load, any size, ranges, fingerprint, purity, compiled equals eager."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tokenizers_vq as tvq
from tokenizers_vq.codes import Codes
from tokenizers_vq.tokenizer import Tokenizer

NARROW = {
    "vqgan-tiny-64": [f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "groups=4")],
    "vqvae-tiny-64": ["encoder.width=8", "decoder.width=8"],
    "vit-vqgan-tiny-64": [
        f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=16", "layers=2", "heads=1")
    ],
    "titok-tiny-64": [
        "image_size=[16, 24]",
        *(f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=16", "layers=2", "heads=1")),
        *(f"{part}.tokens=5" for part in ("encoder", "decoder")),
    ],
    "titok-s128": [
        "image_size=[16, 24]",
        *(f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=16", "layers=2", "heads=1")),
        *(f"{part}.{field}" for part in ("encoder", "decoder") for field in ("tokens=5", "patch=4")),
        "quantizer.dim=8",
        "decoder.proxy={width: 8, multipliers: [1, 1, 2], groups: 4, blocks: 1}",
    ],
    "maskgit-f16-1024": [
        *(f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "groups=4", "blocks=1")),
        *(f"{part}.multipliers=[1, 1, 2]" for part in ("encoder", "decoder")),
        "quantizer.dim=8",
    ],
    "dvae-tiny-64": ["encoder.width=8", "decoder.width=8", "quantizer.num_codes=32", "quantizer.dim=8"],
    "vqvae2-tiny-64": [f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "block_width=4")],
}

NARROW |= {
    "vqgan-tiny-64 with adaptive kernels and L2 attention": [
        *NARROW["vqgan-tiny-64"],
        *("decoder.kernels=3", "decoder.attention=[2]", "decoder.heads=2", "decoder.attention_score=l2"),
    ],
    "vit-vqgan-tiny-64 with overlap": [*NARROW["vit-vqgan-tiny-64"], "decoder.overlap=2", "decoder.overlap_width=4"],
}

ONE_SIZE = {"titok-tiny-64", "titok-s128"}
"""presets whose codes belong to one image size"""
STRIDES = {"vqvae2-tiny-64": 8}
"""where it is not 4"""


def narrow(preset: str, *overrides: str) -> Tokenizer:
    return tvq.create(preset.partition(" ")[0], [*NARROW[preset], *overrides]).eval()


@pytest.fixture(params=NARROW)
def preset(request: pytest.FixtureRequest) -> str:
    return request.param


def parts(codes: Codes) -> tuple[torch.Tensor, ...]:
    return codes if isinstance(codes, tuple) else (codes,)


def same(first: Codes, second: Codes) -> bool:
    return len(parts(first)) == len(parts(second)) and all(map(torch.equal, parts(first), parts(second)))


def looked_up(tokenizer: Tokenizer, codes: Codes) -> Any:
    """What the decoder takes."""
    vectors = tuple(quantizer.lookup(part) for quantizer, part in zip(tokenizer.quantizers, parts(codes), strict=True))
    return vectors if len(vectors) > 1 else vectors[0]


def picture(channels: int = 3, height: int = 16, width: int = 24, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, channels, height, width) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_codes_go_out_and_images_come_back_at_any_size(preset: str, channels: int) -> None:
    tokenizer = narrow(preset, f"channels={channels}")
    stride = STRIDES.get(preset, 4)
    for height, width in [(16, 24)] if preset in ONE_SIZE else [(16, 16), (16, 40), (64, stride)]:
        images = picture(channels, height, width)
        codes = tokenizer.encode(images)
        layout = tokenizer.code_layout(height, width)
        assert all(part.dtype == torch.int64 for part in parts(codes))
        assert [part.shape for part in parts(codes)] == [(2, *grid) for grid in layout.grids]
        assert same(layout.unflatten(layout.flatten(codes)), codes)
        decoded = tokenizer.decode(codes)
        assert decoded.shape == images.shape and decoded.abs().max() <= 1


def test_decoding_codes_is_the_forward_reconstruction(preset: str) -> None:
    tokenizer, images = narrow(preset), picture()
    with torch.no_grad():
        out = tokenizer(images)
    assert same(tokenizer.encode(images), out.quantized.codes)
    assert torch.equal(tokenizer.decode(out.quantized.codes), out.images.clamp(-1, 1))


def test_a_size_that_the_stride_does_not_divide_is_refused(preset: str) -> None:
    stride = STRIDES.get(preset, 4)
    message = rf"18x16 is not divisible by the stride {stride}: .*16 or {16 + stride}"
    if preset in ONE_SIZE:
        message = r"images of 16x24, got 18x16: resize or crop to 16x24"
    with pytest.raises(ValueError, match=message):
        narrow(preset).encode(picture(3, 18, 16))


def test_save_and_load_are_bitwise(preset: str, tmp_path: Path) -> None:
    tokenizer, images = narrow(preset), picture()
    tokenizer.save_pretrained(tmp_path, card={"data": "noise", "licence": "cc0-1.0", "figures": {"PSNR": 9.5}})
    for loaded in (tvq.load(tmp_path), Tokenizer.from_pretrained(tmp_path)):
        assert loaded.config == tokenizer.config and not loaded.training
        assert same(loaded.encode(images), tokenizer.encode(images))
        assert torch.equal(loaded.decode(loaded.encode(images)), tokenizer.decode(tokenizer.encode(images)))
        assert loaded.fingerprint == tokenizer.fingerprint
    card = (tmp_path / "README.md").read_text()
    assert "cc0-1.0" in card and "noise" in card and "9.5" in card


def test_pushing_uploads_the_folder_with_the_card_it_was_loaded_with(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[tuple[str, bool | None, set[str], str]] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            self.private: bool | None = None

        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> SimpleNamespace:
            self.private = private
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: object) -> str:
            names = {path.name for path in folder_path.iterdir()}
            uploads.append((repo_id, self.private, names, (folder_path / "README.md").read_text()))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    narrow(preset).save_pretrained(tmp_path / "model", card={"data": "noise", "figures": {"PSNR": 9.5}})
    loaded = tvq.load(tmp_path / "model")
    assert loaded.push_to_hub("me/kept") == "https://hub/me/kept"
    loaded.push_to_hub("me/new", model_card_kwargs={"data": "cats"})
    loaded.save_pretrained(tmp_path / "copy", push_to_hub=True, repo_id="me/too", card={"data": "dogs"}, private=True)
    assert [(repo, private) for repo, private, *_ in uploads] == [("me/kept", None), ("me/new", None), ("me/too", True)]
    assert all(names == {"README.md", "config.json", "model.safetensors"} for *_, names, _ in uploads)
    kept, new, too = (card for *_, card in uploads)
    assert kept == (tmp_path / "model" / "README.md").read_text() and "9.5" in kept
    assert "cats" in new and "noise" not in new and "dogs" in too


def test_what_people_try_with_other_libraries_is_answered(preset: str, tmp_path: Path) -> None:
    tokenizer = narrow(preset)
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    loaded = Tokenizer.from_pretrained(tmp_path / "run", map_location="cpu")
    assert loaded.fingerprint == tokenizer.fingerprint
    with pytest.raises(TypeError, match="torch_dtype"):
        Tokenizer.from_pretrained(tmp_path / "run", torch_dtype=torch.float16)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="takes no safe_serialization"):
        tokenizer.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match=r"got Image; convert .* with images\.read"):
        tokenizer.encode(Image.new("RGB", (16, 16)))  # type: ignore[arg-type]
    layout = tokenizer.code_layout(16, 24)
    (grid, *finer), size = layout.grids, layout.sizes[0]
    unbatched = r"coarse first, got .*code_layout" if finer else r"got \(\d+,( \d+)?\); add the batch dimension"
    for codes, message in (
        (torch.zeros(grid, dtype=torch.int64), unbatched),
        (torch.full((1, *grid), size), rf"must lie in \[0, {size}\), got values from {size}"),
        (torch.full((1, *grid), -1), r"got values from -1"),
        (torch.zeros(1, *grid), r"got torch\.float32; convert"),
    ):
        others = [torch.zeros(1, *shape, dtype=torch.int64) for shape in finer]
        with pytest.raises(ValueError, match=message):
            tokenizer.decode((codes, *others) if finer else codes)


def test_the_fingerprint_is_of_what_decides_the_codes(preset: str) -> None:
    tokenizer = narrow(preset)
    same = narrow(preset)
    same.load_state_dict(tokenizer.state_dict())
    assert tokenizer.fingerprint == same.fingerprint == same.bfloat16().fingerprint
    other = narrow(preset)
    other.load_state_dict(tokenizer.state_dict())
    torch.nn.init.zeros_(other.decoder.head.weight)
    for quantizer in other.quantizers:
        quantizer.age += 1
    assert tokenizer.fingerprint == other.fingerprint
    with torch.no_grad():
        other.quantizers[-1].weight[0] += 0.5
    assert tokenizer.fingerprint != other.fingerprint
    path = next(iter(tokenizer.config.quantizer_paths))
    assert tokenizer.fingerprint != narrow(preset, f"{path}.num_codes=16").fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("quantizer.weight"), r"missing quantizer\.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "surplus extra"),
        (
            lambda t: t.update({"quantizer.weight": torch.zeros(3, 8)}),
            r"quantizer\.weight is \(3, 8\), the config needs",
        ),
    ],
)
def test_loading_is_strict(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    narrow("vqvae-tiny-64").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        tvq.load(tmp_path)


def test_a_truncated_file_says_so(tmp_path: Path) -> None:
    narrow("vqvae-tiny-64").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model\.safetensors \(5000 bytes\) is truncated"):
        tvq.load(tmp_path)


def test_a_crash_while_saving_leaves_the_old_model_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = narrow("vqvae-tiny-64")
    tokenizer.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        narrow("vqvae-tiny-64").save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "images.from_uint8"),
        (torch.full((1, 3, 16, 16), 200.0), r"\[-1, 1\]"),
        (torch.zeros(1, 16, 16, 3), "permute"),
        (torch.zeros(3, 16, 16), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 5, 16, 16), "channels"),
    ],
)
def test_wrong_images_are_refused_with_the_call_that_mends_them(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        narrow("vqvae-tiny-64").encode(images)


def test_encode_draws_nothing_and_changes_nothing_even_in_train_mode(preset: str) -> None:
    tokenizer, images = narrow(preset).train(), picture()
    before, generator = {k: v.clone() for k, v in tokenizer.state_dict().items()}, torch.get_rng_state()
    tokenizer.decode(tokenizer.encode(images))
    assert all(torch.equal(v, before[k]) for k, v in tokenizer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_pixel_ranges_are_the_networks_business(preset: str) -> None:
    images = picture()
    pixels = ["decoder.output=pixels", "pixels={low: -1.0, high: 1.0, clamp: false}"]
    plain, shifted = narrow(preset, *pixels), narrow(preset, *pixels[:1], "pixels={low: 0.0, high: 1.0, clamp: false}")
    shifted.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert same(shifted.encode_features(images), plain.encode_features((images + 1) / 2))
        codes = shifted.encode(images)
        raw = plain.decoder.render(plain.decoder(looked_up(plain, codes)))
    assert torch.allclose(shifted.decode(codes), raw * 2 - 1)


def test_halves_of_the_tokenizer_are_differentiable(preset: str) -> None:
    tokenizer, images = narrow(preset), picture().requires_grad_()
    for features in parts(tokenizer.encode_features(images)):
        (gradient,) = torch.autograd.grad(features.square().mean(), images, retain_graph=True)
        assert gradient.abs().sum() > 0
    vectors = looked_up(tokenizer, tokenizer.encode(images.detach()))
    leaves = [level.detach().requires_grad_() for level in parts(vectors)]
    decoded = tokenizer.decode_features(tuple(leaves) if len(leaves) > 1 else leaves[0])
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(decoded.mean(), leaves))


def test_both_verbs_compile_into_one_graph(preset: str) -> None:
    tokenizer, images = narrow(preset), picture()
    codes = tokenizer.encode(images)
    torch.compiler.reset()  # dynamo counts what other tests compiled against its limit
    assert same(torch.compile(tokenizer.encode, fullgraph=True, backend="eager")(images), codes)
    compiled = torch.compile(tokenizer.decode, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(codes), tokenizer.decode(codes), atol=1e-5)


def test_foreign_modules_make_a_tokenizer_that_cannot_be_saved(tmp_path: Path) -> None:
    parts = narrow("vqvae-tiny-64")
    tokenizer = Tokenizer.from_parts(parts.encoder, parts.quantizer, parts.decoder, image_size=64)
    images = picture()
    assert torch.equal(tokenizer.decode(tokenizer.encode(images)), parts.decode(parts.encode(images)))
    for refused in (lambda: tokenizer.save_pretrained(tmp_path), lambda: tokenizer.fingerprint):
        with pytest.raises(ValueError, match="from_parts has no config"):
            refused()


def test_every_preset_builds() -> None:
    assert {"vqvae-f4", "vqgan-f8", "vqgan-f16-1024", "vqgan-f16-16384"} <= set(tvq.list_models())
    assert any("tiny" in name for name in tvq.list_models())
    for name in tvq.list_models("preset"):
        with torch.device("meta"):
            layout = tvq.create(name).code_layout()
        assert layout.length > 0 and len(layout.sizes) == len(layout.grids) * layout.levels


def test_names_that_do_not_exist_are_answered_with_near_ones() -> None:
    with pytest.raises(ValueError, match="no model preset 'vqgan-f16'; did you mean 'vqgan-f"):
        tvq.create("vqgan-f16")
    with pytest.raises(ValueError, match=r"quantizer\.num_code: no such field; did you mean 'num_codes'"):
        tvq.create("vqgan-f8", ["quantizer.num_code=2"])
    with pytest.raises(ValueError, match="preset without trained weights"):
        tvq.load("vqgan-f8")
    with pytest.raises(FileNotFoundError, match="called 'nothing'"):
        tvq.load("nothing")


def test_images_are_rendered_where_they_are_asked_for(preset: str) -> None:
    tokenizer = narrow(preset)
    images = picture(3, *tokenizer.config.size)
    whole, bare = tokenizer(images), tokenizer(images, render=False)
    assert bare.images is None and whole.images.shape == images.shape
    assert torch.equal(bare.output, whole.output) and torch.equal(tokenizer.render(bare.output), whole.images)
