"""Cosmos' TorchScript archives. No recorded tensors of it exist: these are round trips of keys that we construct, laid
out as cosmos_tokenizer/networks/discrete_image.py at commit 3584ae7 names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.conversion import convert, torchscript
from tokenizers_vq.networks.cosmos import CosmosDecoderConfig, CosmosEncoderConfig, haar, inverse_haar
from tokenizers_vq.quantizers import FsqQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

LEVELS = (8, 5, 7)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 48 * 32).reshape(2, 3, 48, 32)


def tokenizer(resamplings: int = 1, patch: int = 4) -> Tokenizer:
    fields = {
        "width": 32, "multipliers": (1, 2, 3), "blocks": 1, "attention": (2,), "latent_width": 12,
        "resamplings": resamplings, "patch": patch,
    }  # fmt: skip
    torch.manual_seed(1)
    return Tokenizer(
        TokenizerConfig(
            image_size=1024,
            pixels=PixelRange(clamp=False),
            encoder=CosmosEncoderConfig(**fields),
            quantizer=FsqQuantizerConfig(levels=LEVELS, bound="atanh"),
            decoder=CosmosDecoderConfig(**{**fields, "blocks": 2}),
        )
    ).eval()


def reference_keys(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for key, tensor in ours.items():
        key = re.sub(r"^decoder\.levels\.(\d)\.", lambda match: f"decoder.up.{2 - int(match[1])}.", key)
        for pattern, replacement in [
            (r"^encoder\.levels\.", "encoder.down."),
            (r"\.blocks\.", ".block."),
            (r"\.attention\.", ".attn."),
            (r"^(encoder.*)\.resample\.", r"\1.downsample."),
            (r"^(decoder.*)\.resample\.", r"\1.upsample."),
            (r"\.middle\.0\.", ".mid.block_1."),
            (r"\.middle\.1\.", ".mid.attn_1."),
            (r"\.middle\.2\.", ".mid.block_2."),
            (r"\.shortcut\.", ".nin_shortcut."),
            (r"\.out\.", ".proj_out."),
            (r"^(encoder|decoder)\.norm\.", r"\1.norm_out."),
            (r"^decoder\.head\.", "decoder.conv_out."),
            (r"^(?:en|de)coder\.((?:post_)?quant_conv)\.", r"\1."),
        ]:
            key = re.sub(pattern, replacement, key)
        named[key] = tensor
    return named


class _Node(nn.Module):
    """A tree of modules with given parameters, which TorchScript archives under their dotted names."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, rest = key.partition(".")
            groups.setdefault(name, {})[rest] = tensor
        for name, inner in groups.items():
            if "" in inner:
                floating = inner[""].is_floating_point()
                self.register_parameter(name, nn.Parameter(inner[""])) if floating else self.register_buffer(
                    name, inner[""]
                )
            else:
                self.add_module(name, _Node(inner))

    def forward(self, x: Tensor) -> Tensor:
        return x


def archive(tensors: dict[str, Tensor], path: Path) -> None:
    torch.jit.save(torch.jit.trace(_Node(tensors).eval(), torch.zeros(1)), path)


@pytest.mark.parametrize(("resamplings", "patch"), [(1, 4), (2, 2), (0, 8), (3, 1)])
def test_two_archives_make_the_tokenizer(resamplings: int, patch: int, tmp_path: Path) -> None:
    expected = tokenizer(resamplings, patch)
    keys = reference_keys(expected.state_dict())
    encoder = {key: value for key, value in keys.items() if key.startswith(("encoder.", "quant_conv."))}
    constants = {"encoder.patcher.wavelets": torch.ones(2), "quantizer._levels": torch.tensor(LEVELS)}
    archive({**encoder, **constants}, tmp_path / "encoder.jit")
    archive({key: value for key, value in keys.items() if key not in encoder}, tmp_path / "decoder.jit")
    converted = convert("cosmos", tmp_path)
    assert converted.config == expected.config
    codes = converted.encode(IMAGES)
    assert torch.equal(codes, expected.encode(IMAGES)) and len(codes.unique()) > 3
    assert torch.equal(converted.decode(codes), expected.decode(codes))


def test_a_half_precision_archive_and_a_plain_file_are_taken(tmp_path: Path) -> None:
    keys = {key: value.bfloat16() for key, value in reference_keys(tokenizer().state_dict()).items()}
    archive(keys, tmp_path / "autoencoder.jit")
    torch.save(keys, tmp_path / "plain.pt")
    settings = {"levels": list(LEVELS), "resolution": 1024}
    whole, plain = (convert("cosmos", path, settings) for path in (tmp_path, tmp_path / "plain.pt"))
    assert whole.dtype == torch.float32
    assert torch.equal(whole.encode(IMAGES), plain.encode(IMAGES))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    keys = reference_keys(tokenizer().state_dict())
    torch.save(keys, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="codes of 3 channels, but there are levels for 6"):
        convert("cosmos", tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="only FSQ is read"):
        convert("cosmos", tmp_path / "plain.pt", {"quantizer": "LFQ"})
    with pytest.raises(FileNotFoundError, match=r"encoder\.jit and decoder\.jit"):
        convert("cosmos", tmp_path)
    torch.save({key: value for key, value in keys.items() if "mid.block_2" not in key}, tmp_path / "short.pt")
    with pytest.raises(ValueError, match=r"missing decoder\.middle\.2"):
        convert("cosmos", tmp_path / "short.pt", {"levels": LEVELS})


def test_an_archives_code_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive({"a.b": torch.arange(6.0).reshape(2, 3).T, "a.c": torch.tensor([1, 2])}, tmp_path / "x.jit")
    monkeypatch.setattr(torch.jit, "load", lambda *_: pytest.fail("loaded"))
    assert torchscript.is_archive(tmp_path / "x.jit")
    read = torchscript.read(tmp_path / "x.jit")
    assert torch.equal(read["a.b"], torch.arange(6.0).reshape(2, 3).T) and torch.equal(
        read["a.c"], torch.tensor([1, 2])
    )
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    assert not torchscript.is_archive(tmp_path / "x.pt")
    (tmp_path / "cut.jit").write_bytes((tmp_path / "x.jit").read_bytes()[:-40])
    with pytest.raises(ValueError, match="truncated"):
        torchscript.read(tmp_path / "cut.jit")


def test_wavelets_are_their_filters_and_have_an_inverse() -> None:
    """One step as two strided convolutions with [1, 1] / sqrt 2 and [1, -1] / sqrt 2, columns first, then halved."""
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    low, high = (torch.tensor([1.0, sign], dtype=torch.float64) / 2**0.5 for sign in (1, -1))

    def step(x: Tensor) -> Tensor:
        width = x.shape[1]
        columns = [F.conv2d(x, f.repeat(width, 1, 1, 1), stride=(1, 2), groups=width) for f in (low, high)]
        bands = [
            F.conv2d(y, f[:, None].repeat(width, 1, 1, 1), stride=(2, 1), groups=width)
            for y in columns
            for f in (low, high)
        ]
        return torch.cat(bands, dim=1) / 2

    assert torch.allclose(haar(x, 2), step(x))
    assert torch.allclose(haar(x, 4), step(step(x)))
    assert torch.allclose(inverse_haar(haar(x, 4), 4), x)
    assert torch.equal(haar(x, 1), x)


def test_patches_that_wavelets_cannot_take_are_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        CosmosEncoderConfig(patch=6)
    with pytest.raises(ValueError, match="at most as many"):
        CosmosDecoderConfig(resamplings=4)
