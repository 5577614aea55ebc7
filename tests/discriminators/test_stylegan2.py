"""StyleGAN2's discriminator beyond the recorded tensors: sizes, widths, precision, groups, lazy R1."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from tokenizers_vq.batch import Batch
from tokenizers_vq.discriminators import DiscriminatorConfig, StyleGAN2Config
from tokenizers_vq.discriminators.stylegan2 import StyleGAN2, layer_width, minibatch_deviation
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import R1


def narrow(channels: int = 3, size: tuple[int, int] = (32, 32), **fields: object) -> StyleGAN2:
    torch.manual_seed(3)
    return StyleGAN2(channels, size, **{"width": 1 / 32, **fields})


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_config_is_of_the_union() -> None:
    config = TypeAdapter(DiscriminatorConfig).validate_python({"kind": "stylegan2", "width": 0.125})
    assert isinstance(config, StyleGAN2Config)
    assert config.build(channels=1, image_size=(16, 8))(torch.rand(2, 1, 16, 8)).logits[0].shape == (2, 1)


@pytest.mark.parametrize(("multiplier", "parameters"), [(1, 24_001_089), (2, 28_864_129)])
def test_published_parameters(multiplier: int, parameters: int) -> None:
    widths = [layer_width(side, multiplier=multiplier) for side in (256, 128, 64, 32, 16, 8, 4)]
    assert widths == [64 * multiplier, 128 * multiplier, 256 * multiplier, 512, 512, 512, 512]
    with torch.device("meta"):
        assert count(StyleGAN2Config(channel_multiplier=multiplier).build(3, (256, 256))) == parameters


def test_width_scales_every_layer() -> None:
    published, half = (
        {name: p.shape for name, p in narrow(size=(64, 64), width=w).named_parameters()} for w in (1 / 16, 1 / 32)
    )
    assert published["blocks.0.conv1.weight"] == (32, 32, 3, 3)
    assert half["blocks.0.conv1.weight"] == (16, 16, 3, 3)
    assert half["head.1.weight"] == (16, 16 * 16)
    assert [layer_width(64, 1 / 32, m) for m in (1, 2)] == [8, 16]
    assert layer_width(4, 1e-6) == 1


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(8, 8), (64, 128), (32, 8)])
def test_shapes_and_gradients(channels: int, size: tuple[int, int]) -> None:
    discriminator = narrow(channels, size)
    judgement = discriminator(torch.randn(5, channels, *size))
    assert [tuple(logits.shape) for logits in judgement.logits] == [(5, 1)]
    shapes = [(size[0] >> i, size[1] >> i) for i in range(1, min(size).bit_length() - 2)]
    assert [tuple(features.shape[-2:]) for features in judgement.features] == shapes
    assert min(shapes[-1]) == 4
    judgement.logits[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in discriminator.parameters())


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((48, 64), "32x64 or 64x64"), ((64, 100), "64x64 or 64x128"), ((4, 16), "8x16"), ((0, 9), "8x8 or 8x16")],
)
def test_other_sides_are_refused(size: tuple[int, int], nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"got {size[0]}x{size[1]}: set `image_size` to {nearest}, or take patchgan$"):
        narrow(size=size)


def test_another_size_than_it_was_built_for_is_refused() -> None:
    discriminator = narrow(size=(16, 32))
    for call in (
        lambda: discriminator.check(Batch(torch.zeros(2, 3, 32, 16))),
        lambda: discriminator(torch.rand(1, 3, 32, 16)),
    ):
        with pytest.raises(ValueError, match="built for images of 16x32, got 32x16"):
            call()


def test_one_image_alone_is_refused_before_a_run() -> None:
    alone = Batch(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"stddev_group: one image .* or give stddev_group=1 to do without$"):
        narrow().check(alone)
    narrow(stddev_group=1).check(alone)
    assert narrow()(alone.images).logits[0].shape == (1, 1)


def test_activations_keep_their_scale() -> None:
    """Equalised layers of standard normal weights neither blow up nor fade, however wide."""
    smooth = functional.interpolate(torch.randn(8, 3, 4, 4), (64, 64), mode="bilinear")  # noise would be blurred away
    for width in (1 / 32, 1 / 8):
        judgement = narrow(size=(64, 64), width=width)(smooth)
        for features in judgement.features:
            assert 0.3 < features.square().mean().sqrt() < 2
    weight = narrow(width=1 / 8).mix[0].weight
    assert weight.std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1]), (3, [3]), (4, [4]), (7, [7]), (8, [4, 4]), (9, [5, 4])])
def test_groups_of_the_minibatch_deviation(batch: int, sizes: list[int]) -> None:
    features = torch.randn(batch, 6, 4, 8)
    given = minibatch_deviation(features, 4)
    assert given.shape == (batch, 1, 4, 8)
    members = [features[j :: len(sizes)] for j in range(len(sizes))]
    assert [len(group) for group in members] == sizes
    for j, group in enumerate(members):
        expected = (group.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(given[j :: len(sizes)], expected.expand(len(group), 1, 4, 8))


def test_deviation_of_half_precision_is_taken_in_float32() -> None:
    features = 100 + torch.randn(4, 6, 4, 4)
    rounded = features.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = minibatch_deviation(rounded, 4)
    assert torch.equal(given, minibatch_deviation(rounded.float(), 4))


def penalised(discriminator: StyleGAN2, images: Tensor, bf16: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    record = Record(images, images, discriminator=discriminator)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = discriminator(images).logits[0]
        penalty = R1()(record, discriminator, record.real, record.fake)
    discriminator.zero_grad()
    penalty.backward()
    # The last bias has no part in the input's gradient.
    return logits, penalty, {k: p.grad for k, p in discriminator.named_parameters() if p.grad is not None}


def test_autocast_and_double_backward() -> None:
    discriminator, images = narrow(size=(32, 64)), torch.rand(8, 3, 32, 64) * 2 - 1
    logits, penalty, gradients = penalised(discriminator, images, bf16=False)
    logits_half, penalty_half, gradients_half = penalised(discriminator, images, bf16=True)
    assert discriminator(images).features[0].dtype == torch.float32
    torch.testing.assert_close(logits_half.float(), logits, rtol=0.05, atol=0.05)
    torch.testing.assert_close(penalty_half, penalty, rtol=0.05, atol=0)
    assert penalty_half.dtype == torch.float32
    assert gradients.keys() == gradients_half.keys()
    assert "blocks.0.skip.weight" in gradients and "stem.0.weight" in gradients
    for name, gradient in gradients.items():
        assert gradients_half[name].isfinite().all()
        error = torch.linalg.vector_norm(gradients_half[name] - gradient)
        assert error <= 0.1 * torch.linalg.vector_norm(gradient) + 1e-7, name
