"""The variational bottleneck: its KL and its multiplier by hand, its noise, what it can stand around."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.laws.adversaries import INNER, PLAIN, make_adversary, make_record
from tokenizers_vq.config import ConfigError
from tokenizers_vq.discriminators import (
    AttentionConfig,
    AugmentedConfig,
    BottleneckConfig,
    ClassHeadConfig,
    DCGANConfig,
    MinibatchConfig,
    MultiscaleConfig,
    PairConfig,
    PatchGANConfig,
    SeveralConfig,
    StyleGAN2Config,
    UNetConfig,
    VisionAidedConfig,
)
from tokenizers_vq.discriminators.base import Split
from tokenizers_vq.discriminators.bottleneck import Code

HALVES: list[Any] = [
    PLAIN,
    PatchGANConfig(width=4, layers=2, norm="virtual", reference_size=4),
    DCGANConfig(width=4),
    StyleGAN2Config(width=1 / 64),
    AttentionConfig(width=8, resolution=16),
    MultiscaleConfig(width=4, scales=3),
    UNetConfig(width=4),
    VisionAidedConfig(stages=(0, 2), width=4),
]


def test_the_kl_is_that_of_gaussians_and_the_code_a_draw_of_them() -> None:
    code = Code(3)
    embedding, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 20)
    torch.nn.init.normal_(code.log_deviation.weight)
    found, kl = code(embedding, noise)
    rows = embedding.flatten(2)
    mean, deviation = code.mean(rows), code.log_deviation(rows).exp()
    torch.testing.assert_close(found, (mean + deviation * noise).view(2, 3, 4, 5))
    told = torch.distributions.Normal(mean, deviation)
    per_channel = torch.distributions.kl_divergence(told, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl, per_channel.sum(1).mean())  # nats a position
    alone, _ = code(embedding, None)
    torch.testing.assert_close(alone, mean.view(2, 3, 4, 5))
    assert code(embedding[..., 0, 0], None)[0].shape == (2, 3)


def test_the_multiplier_climbs_above_the_target_and_falls_below_it_to_zero_at_least() -> None:
    adversary = make_adversary(
        discriminator=BottleneckConfig(discriminator=INNER, target=0.5, multiplier=0.3, rate=0.01)
    )
    bottleneck = adversary.discriminator
    record = make_record(bottleneck)
    loss, figures = adversary.own_loss(bottleneck, record)
    noise = [bottleneck.inputs(record, images)[1] for images in (record.images, record.reconstructions)]
    sides = zip((record.images, record.reconstructions), noise, strict=True)
    kls = [bottleneck.codes[0](bottleneck.inner.embed(x).embeddings[0], n[0])[1].item() for x, n in sides]
    own = [figures[f"adversary/bottleneck_{side}"].item() for side in ("real", "fake")]
    assert own == pytest.approx([0.15 * (kl - 0.5) for kl in kls], rel=1e-5)
    assert loss.item() == pytest.approx(figures["discriminator"].item() + sum(own), rel=1e-5)
    adversary.after_step()
    assert adversary.state_figures()["adversary/kl"].item() == pytest.approx(sum(kls) / 2, rel=1e-5)
    moved = 0.3 + 0.01 * (sum(kls) / 2 - 0.5)
    assert adversary.state_figures()["adversary/multiplier"].item() == pytest.approx(moved, rel=1e-5) != 0.3
    with torch.no_grad():  # a code that tells nothing
        bottleneck.codes[0].mean.weight.zero_()
        bottleneck.codes[0].mean.bias.zero_()
    for _ in range(3):
        before = bottleneck.multiplier.item()
        adversary.own_loss(bottleneck, record)
        adversary.after_step()
        assert bottleneck.multiplier.item() == pytest.approx(max(before - 0.005, 0), abs=1e-6)
    bottleneck.multiplier.fill_(0.001)
    adversary.own_loss(bottleneck, record)
    adversary.after_step()
    assert bottleneck.multiplier.item() == 0


def test_noise_follows_from_key_step_and_side_and_rests_in_eval_mode() -> None:
    bottleneck = BottleneckConfig(discriminator=INNER).build(3, (32, 32)).train()
    record, some = make_record(bottleneck), make_record(bottleneck, slice(1, 3))
    (real,), (fake,) = (bottleneck.inputs(record, x)[1] for x in (record.images, record.reconstructions.detach()))
    assert real.shape == fake.shape == (8, *bottleneck.shapes[0]) and not torch.equal(real, fake)
    assert torch.equal(bottleneck.inputs(some, some.images)[1][0], real[1:3])
    some.step = 1
    some._shared.clear()
    assert not torch.equal(bottleneck.inputs(some, some.images)[1][0], real[1:3])
    assert not torch.equal(real[0], real[1])
    noisy, again = (bottleneck(*bottleneck.inputs(record, record.images)).logits[0] for _ in range(2))
    still, plain = bottleneck.eval()(record.images, (real,)).logits[0], bottleneck(record.images).logits[0]
    assert torch.equal(noisy, again) and torch.equal(still, plain) and not torch.allclose(noisy, still)


def test_what_stands_around_it_sees_the_code_alone() -> None:
    bottleneck = BottleneckConfig(discriminator=UNetConfig(width=4)).build(3, (32, 32)).eval()
    images = torch.rand(2, 3, 32, 32)
    judgement = bottleneck(images)
    assert judgement.features[-1].shape == (2, bottleneck.feature_width, 32, 32)
    torch.testing.assert_close(bottleneck.inner.pixels(judgement.features[-1]), judgement.logits[-1])
    vector = BottleneckConfig(discriminator=AttentionConfig(width=8, resolution=16)).build(3, (32, 32)).eval()
    assert vector(images).features[-1].shape == (2, vector.feature_width, 1, 1)


@pytest.mark.parametrize("config", HALVES, ids=lambda config: config.kind)
def test_it_stands_around_every_discriminator_of_images(config: Any) -> None:
    inner = config.build(3, (32, 32)).eval()
    images = torch.rand(2, 3, 32, 32)
    embeddings, features = inner.embed(images)
    judgement = inner(images)
    assert isinstance(inner, Split) and [e.shape[1] for e in embeddings] == inner.embedding_widths
    assert all(map(torch.equal, inner.decide(embeddings), judgement.logits))
    assert all(map(torch.equal, features, judgement.features))
    bottleneck = BottleneckConfig(discriminator=config).build(3, (32, 32)).train()
    record = make_record(bottleneck)
    told = bottleneck(*bottleneck.inputs(record, record.images))
    shapes = [(8, *logits.shape[1:]) for logits in judgement.logits]
    assert [tuple(logits.shape) for logits in told.logits] == shapes


@pytest.mark.parametrize(
    "config",
    [
        PairConfig(discriminator=INNER),
        AugmentedConfig(discriminator=INNER),
        MinibatchConfig(discriminator=INNER),
        ClassHeadConfig(discriminator=INNER, num_classes=4),
        SeveralConfig(discriminators=(INNER,)),
    ],
    ids=lambda config: config.kind,
)
def test_around_a_wrapper_it_is_refused_with_the_way_out(config: Any) -> None:
    with pytest.raises(ConfigError) as error:
        make_adversary(discriminator=BottleneckConfig(discriminator=config))
    kind = config.kind
    assert str(error.value) == (
        f"adversary.discriminator: bottleneck stands right around a discriminator of images, and {kind} is none: put "
        f"bottleneck inside {kind}, around what it holds"
    )


def test_only_its_own_size_is_taken() -> None:
    bottleneck = BottleneckConfig(discriminator=INNER).build(3, (32, 32))
    batch = make_record(bottleneck).batch
    INNER.build(3, (32, 32)).check(batch._replace(images=torch.zeros(8, 3, 48, 32)))
    with pytest.raises(ValueError, match="this bottleneck was built for images of 32x32, got 48x32: build it for"):
        bottleneck.check(batch._replace(images=torch.zeros(8, 3, 48, 32)))
