"""Bits of a codec are those of what it would store."""

from __future__ import annotations

import io
import math

import pytest
import torch
from PIL import Image, features

from tests.evaluation.toy import SequenceTokenizer, ToyTokenizer
from tokenizers_vq import images
from tokenizers_vq.evaluation import codecs, metrics
from tokenizers_vq.evaluation.codecs import PillowCodec, TokenizerCodec, pillow_codecs


def pictures(count: int = 2, channels: int = 3) -> torch.Tensor:
    """Smooth colours, on the 8-bit grid."""
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, (40, 48), mode="bilinear")
    return images.from_uint8(images.to_uint8(smooth))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["jpeg", "webp", "avif"])
def test_bits_are_the_files_and_images_what_they_decode_to(format: str, channels: int) -> None:
    if codecs.missing(format):
        pytest.skip(codecs.missing(format))
    source, codec = pictures(channels=channels), PillowCodec(format, 60)
    files = codec.encode(source)
    made = codec(source)
    assert made.bits.tolist() == [8 * len(file) for file in files.data]
    assert made.images.shape == source.shape
    for file, image in zip(files.data, made.images, strict=True):
        with Image.open(io.BytesIO(file)) as opened:
            assert opened.format == format.upper()
            assert torch.equal(images.read(opened, channels)[0], image)
    assert metrics.psnr(source, made.images).min() > 25
    media_type, shown = codec.picture(files, made.images, 1)
    assert (media_type, shown) == (f"image/{format}", files.data[1])


def test_fewer_bits_at_lower_quality() -> None:
    found, left_out = pillow_codecs()
    assert {codec.family for codec in found} | set(left_out) == {"JPEG", "WebP", "AVIF"}
    source = pictures(1)
    for family in {codec.family for codec in found}:
        bits = [codec(source).bits.item() for codec in found if codec.family == family]
        assert bits[0] < bits[-1] and len(bits) > 4


def test_a_missing_format_is_left_out_with_the_reason(monkeypatch) -> None:
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name != "avif" and check(name))
    found, left_out = pillow_codecs()
    assert {codec.family for codec in found} == {"JPEG", "WebP"}
    assert "comes without AVIF here" in left_out["AVIF"] and "11.3" in left_out["AVIF"]
    with pytest.raises(ValueError, match="without AVIF"):
        PillowCodec("avif", 10)


def test_other_channels_leave_the_formats_out() -> None:
    found, left_out = pillow_codecs(channels=5)
    assert not found and all("these have 5" in reason for reason in left_out.values())


@pytest.mark.parametrize(("format", "quality", "line"), [("gif", 5, "no codec 'gif'"), ("jpeg", 0, "no quality 0")])
def test_refusals_are_one_line(format: str, quality: int, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        PillowCodec(format, quality)


@pytest.mark.parametrize("tokenizer", [ToyTokenizer(size=6), SequenceTokenizer()])
def test_a_tokenizers_bits_are_its_layouts(tokenizer: ToyTokenizer) -> None:
    codec, source = TokenizerCodec(tokenizer, "toy"), torch.rand(3, 3, 16, 16) * 2 - 1
    made = codec(source)
    assert made.bits.tolist() == [tokenizer.code_layout(16, 16).bits] * 3
    assert made.bits[0] == pytest.approx(16 * math.log2(6 if type(tokenizer) is ToyTokenizer else 8))
    assert torch.equal(made.images, tokenizer.decode(tokenizer.encode(source)))
    media_type, shown = codec.picture(codec.encode(source), made.images, 2)
    with Image.open(io.BytesIO(shown)) as opened:
        assert media_type == "image/png" and opened.size == (16, 16)
