"""Norms and downsampling of PatchGAN and DCGAN by hand: virtual batch norm, groups, blur, sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tokenizers_vq import folders
from tokenizers_vq.batch import Batch
from tokenizers_vq.discriminators import DCGANConfig, PatchGANConfig, saved
from tokenizers_vq.discriminators.layers import Blur, Reference, VirtualNorm


def test_virtual_batch_norm_takes_half_of_each_batch() -> None:
    torch.manual_seed(0)
    reference, current = torch.randn(3, 4, 5, 6), 2 + 3 * torch.randn(3, 4, 5, 6)
    normed = VirtualNorm(4, rows=3)(torch.cat([reference, current]))
    # As many of each: half of each is the batch of both.
    both = torch.cat([reference, current])
    expected = nn.functional.batch_norm(both, None, None, training=True)
    torch.testing.assert_close(normed[3:], expected[3:])
    torch.testing.assert_close(normed[:3], nn.functional.batch_norm(reference, None, None, training=True))


def test_the_reference_is_what_was_seen_first_and_is_kept() -> None:
    reference = Reference(5, 1, (2, 2))
    first, second = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 2), torch.ones(4, 1, 2, 2)
    assert not reference.eval()(second)[5:].ne(second).any() and not reference.kept
    for images in (first, second):
        joined = reference.train()(images)
        assert joined[:5, 0, 0, 0].tolist() == [0, 1, 2, 0, 1] and torch.equal(joined[5:], images)
    other = Reference(5, 1, (2, 2))
    other.load_state_dict(reference.state_dict())
    assert torch.equal(other(second), joined)


@pytest.mark.parametrize("kind", [PatchGANConfig, DCGANConfig])
def test_a_virtual_batch_of_one_is_refused(kind: type) -> None:
    discriminator = kind(width=4, norm="virtual").build(3, (32, 32))
    with pytest.raises(ValueError, match=r"needs two images or more .*, got 1: raise `batch_size`"):
        discriminator.check(Batch(torch.zeros(1, 3, 32, 32)))
    discriminator.check(Batch(torch.zeros(2, 3, 32, 32)))


@pytest.mark.parametrize("size", [(32, 32), (33, 46)])
def test_blurred_halving_gives_the_sizes_of_the_stride(size: tuple[int, int]) -> None:
    shapes = [
        [f.shape for f in config(width=4, norm="group", downsampling=way).build(3, size)(torch.rand(2, 3, *size))[1]]
        for config in (PatchGANConfig, DCGANConfig)
        for way in ("stride", "blur")
    ]
    assert shapes[0] == shapes[1] and shapes[2] == shapes[3]


def test_blur_by_hand() -> None:
    row = torch.zeros(1, 1, 8, 8)
    row[..., 3] = 1
    assert Blur()(row)[0, 0, 1].tolist() == pytest.approx([0, 3 / 8, 1 / 8, 0])
    assert torch.equal(Blur(edge=True)(torch.full((1, 2, 6, 6), 3.0)), torch.full((1, 2, 3, 3), 3.0))
    # What alternates from pixel to pixel is gone, which a stride would keep.
    assert not Blur()(torch.tensor([1.0, -1.0]).repeat(8).expand(1, 1, 16, 16))[..., 1:-1, 1:-1].any()


def test_dcgan_is_convolutions_without_pooling() -> None:
    discriminator = DCGANConfig().build(3, (64, 64))
    convolutions = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.stride[0]) for c in convolutions] == [(64, 2), (128, 2), (256, 2), (512, 2), (1, 1)]
    slopes = {m.negative_slope for m in discriminator.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2} and discriminator(torch.rand(2, 3, 64, 64)).logits[0].shape == (2, 1)
    with pytest.raises(ValueError, match=r"at least 32x32, got 16x64: lower its `depth` or enlarge `image_size`$"):
        DCGANConfig(depth=4).build(3, (16, 64))


def test_a_discriminator_saved_before_a_field_existed_is_still_taken(tmp_path: Path) -> None:
    config = PatchGANConfig(width=4, layers=2)
    old, new = config.build(3, (32, 32)), config.build(3, (32, 32))
    description = saved.describe(old)
    description["discriminator"] = {"kind": "patchgan", "width": 4, "layers": 2, "norm": "batch"}
    folders.save(tmp_path, description, old.state_dict())
    assert saved.fill(new, tmp_path) is None
    assert all(map(torch.equal, new.state_dict().values(), old.state_dict().values()))
    blurred = PatchGANConfig(width=4, layers=2, downsampling="blur").build(3, (32, 32))
    assert saved.fill(blurred, tmp_path) == "downsampling is stride, here blur"
