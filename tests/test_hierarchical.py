"""Tokenizers of several grids: the finer level knows the coarser codes, the decoder all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tokenizers_vq as tvq
from tests.processes import in_processes
from tokenizers_vq.hierarchical import HierarchicalConfig, HierarchicalTokenizer
from tokenizers_vq.networks.vqvae2 import Vqvae2DecoderConfig, Vqvae2EncoderConfig
from tokenizers_vq.quantizers.vector import VectorQuantizerConfig

_NETWORK = {"width": 8, "block_width": 4, "blocks": 1}


def make(*downsamples: int, codebook: str = "ema", **fields: object) -> HierarchicalTokenizer:
    books = tuple(
        VectorQuantizerConfig(num_codes=16 + i, dim=3 + i, codebook=codebook) for i in range(len(downsamples))
    )
    config = HierarchicalConfig(
        image_size=32,
        encoder=Vqvae2EncoderConfig(downsamples=downsamples, **_NETWORK),
        quantizers=books,
        decoder=Vqvae2DecoderConfig(downsamples=downsamples, **_NETWORK),
        **fields,
    )
    tokenizer = config.build()
    for quantizer in tokenizer.quantizers:  # apart, so that codes vary
        nn.init.normal_(quantizer.weight, std=0.1)
    return tokenizer


def picture(height: int = 32, width: int = 64) -> Tensor:
    return torch.rand(2, 3, height, width) * 2 - 1


def test_the_published_model_has_the_parameters_of_its_class() -> None:
    # VQVAE of rosinality/vq-vae-2-pytorch at commit 3c61d64, its defaults: 128 channels, 2 blocks of 32, codes of 64.
    def conv(before: int, after: int, kernel: int) -> int:
        return before * after * kernel**2 + after

    blocks = 2 * (conv(128, 32, 3) + conv(32, 128, 1))
    bottom = conv(3, 64, 4) + conv(64, 128, 4) + conv(128, 128, 3) + blocks
    top = conv(128, 64, 4) + conv(64, 128, 3) + blocks
    decode_top = conv(64, 128, 3) + blocks + conv(128, 64, 4)
    decode = conv(128, 128, 3) + blocks + conv(128, 64, 4) + conv(64, 3, 4)
    beside = conv(128, 64, 1) + conv(64 + 128, 64, 1) + conv(64, 64, 4)
    with torch.device("meta"):
        tokenizer = tvq.create("vqvae2-f4")
    total = sum(parameter.numel() for parameter in tokenizer.parameters())
    assert total == bottom + top + decode_top + decode + beside == 1_388_867
    layout = tokenizer.code_layout()
    assert layout.grids == ((32, 32), (64, 64)) and layout.sizes == (512, 512) and layout.length == 5120


@pytest.mark.parametrize("downsamples", [(1, 2), (2, 1), (1, 1, 1), (1, 2, 1, 1)])
def test_any_number_of_levels(downsamples: tuple[int, ...], tmp_path: Path) -> None:
    tokenizer, images = make(*downsamples).eval(), picture()
    codes = tokenizer.encode(images)
    layout = tokenizer.code_layout(32, 64)
    strides = [2 ** sum(downsamples[level:]) for level in range(len(downsamples))]
    assert layout.grids == tuple((32 // stride, 64 // stride) for stride in strides)
    assert layout.sizes == tuple(16 + level for level in range(len(downsamples)))
    assert isinstance(codes, tuple) and [part.shape[1:] for part in codes] == list(layout.grids)
    assert tokenizer.decode(codes).shape == images.shape
    with torch.no_grad():
        out = tokenizer(images)
    assert all(map(torch.equal, out.quantized.codes, codes))
    assert all(map(torch.equal, out.features, tokenizer.encode_features(images)))
    tokenizer.save_pretrained(tmp_path)
    loaded = tvq.load(tmp_path)
    assert isinstance(loaded, HierarchicalTokenizer) and loaded.fingerprint == tokenizer.fingerprint
    assert torch.equal(loaded.decode(loaded.encode(images)), tokenizer.decode(codes))


def test_a_finer_level_depends_on_the_coarser_codes_and_not_the_other_way() -> None:
    tokenizer, images = make(1, 1, 1).eval(), picture()
    with torch.no_grad():
        before = tokenizer.encode_features(images)
        tokenizer.quantizers[1].weight.add_(1.0)
        after = tokenizer.encode_features(images)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not torch.allclose(before[2], after[2])


def test_every_level_reaches_the_image() -> None:
    tokenizer = make(1, 1, 1).eval()
    codes = tokenizer.encode(picture())
    image = tokenizer.decode(codes)
    for level, part in enumerate(codes):
        changed = [*codes]
        changed[level] = (part + 1) % 16
        assert not torch.allclose(tokenizer.decode(tuple(changed)), image)


def test_losses_are_summed_and_statistics_joined_over_levels() -> None:
    tokenizer, images = make(1, 2, codebook="gradient").train(), picture()
    quantized = tokenizer(images).quantized
    assert quantized.losses.keys() == {"codebook", "commitment"}
    stats = quantized.stats
    assert torch.equal(quantized.losses["commitment"], stats["level 1/commitment"] + stats["level 2/commitment"])
    assert stats["perplexity"] == (stats["level 1/perplexity"] + stats["level 2/perplexity"]) / 2
    assert not any(value.requires_grad for value in stats.values())


def test_the_straight_through_gradient_reaches_the_top_through_the_finer_level() -> None:
    tokenizer = make(1, 2).train()
    tokenizer.decode_features(tokenizer(picture()).quantized.features).square().mean().backward()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


def test_codes_that_cannot_be_are_refused() -> None:
    tokenizer = make(1, 2).eval()
    top, bottom = tokenizer.encode(picture())
    for codes, message in (
        (bottom, r"2 of \(B, \*grid\), coarse first, got \(2, 8, 16\)"),
        ((top, bottom, bottom), "got .* their grids with code_layout"),
        ((bottom, top), r"codes of grids \[\(8, 16\), \(4, 8\)\] are not of one image"),
        ((top, bottom + 20), r"must lie in \[0, 17\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(codes)
    with pytest.raises(ValueError, match=r"20x32 is not divisible by the stride 8.*height of 16 or 24"):
        tokenizer.encode(picture(20, 32))


def test_settings_that_cannot_be_are_refused() -> None:
    name = "vqvae2-tiny-64"
    for overrides, message in (
        (["encoder.downsamples=[1,1,2]"], r"encoder.downsamples: 2 quantizers need as many levels"),
        (["decoder.downsamples=[2,1]"], r"decoder.downsamples: must be the encoder's, \[1, 2\]"),
        (
            ["encoder.downsamples=[0,2]", "decoder.downsamples=[0,2]"],
            r"encoder.downsamples.0: input should be greater than or equal to 1, got 0",
        ),
        (["quantizers.1.num_code=3"], r"quantizers.1.num_code: no such field; did you mean 'num_codes'"),
        (["kind=hierarchic"], r"kind: unknown kind 'hierarchic'; did you mean 'hierarchical'"),
        (["decoder.output=logit_laplace"], "pixels: a logit-Laplace decoder needs pixels inside"),
        (["quantizers.1={kind: residual, levels: 2}"], "one grid each, all of as many levels"),
    ):
        with pytest.raises(ValueError, match=message):
            tvq.create(name, overrides)


def test_residual_quantizers_stand_at_every_level() -> None:
    book = "{kind: residual, levels: 2, num_codes: 8, dim: 4}"
    small = [f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "block_width=4")]
    tokenizer = tvq.create("vqvae2-tiny-64", [*small, f"quantizers.0={book}", f"quantizers.1={book}"]).eval()
    codes = tokenizer.encode(picture(16, 24))
    assert [part.shape for part in codes] == [(2, 2, 3, 2), (2, 4, 6, 2)]
    layout = tokenizer.code_layout(16, 24)
    assert all(map(torch.equal, layout.unflatten(layout.flatten(codes)), codes))
    assert tokenizer.decode(codes).shape == (2, 3, 16, 24)


def _two_updates(rank: int, world: int, images: Tensor) -> dict[str, Tensor]:
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    tokenizer = make(1, 1).train()
    module: nn.Module = DistributedDataParallel(tokenizer) if world > 1 else tokenizer
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.1)
    for _ in range(2):  # the second fails where the first left a parameter without gradient
        out = module(images.chunk(world)[rank])
        (out.output.square().mean() + sum(out.quantized.losses.values())).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor.detach() for name, tensor in tokenizer.state_dict().items()}


def test_two_processes_equal_one() -> None:
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    alone = _two_updates(0, 1, images)
    for together in in_processes(2, _two_updates, images):
        for name, tensor in alone.items():
            assert torch.allclose(tensor.double(), together[name].double(), rtol=1e-4, atol=1e-6), name
