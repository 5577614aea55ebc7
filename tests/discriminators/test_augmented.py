"""DiffAugment and ADA by hand: one draw for all that belongs together, the operations, the rule for p."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.laws.adversaries import INNER, PLAIN, make_record
from tokenizers_vq.config import ConfigError
from tokenizers_vq.discriminators import AugmentedConfig, PairConfig, SeveralConfig
from tokenizers_vq.discriminators.augmented import DRAWS, augment
from tokenizers_vq.losses.record import Record

ALWAYS = torch.ones(())


def draws(**given: float) -> Tensor:
    """One image's, in the middle where not given: no change but the cutout, which needs p."""
    names = ["on0", "on1", "on2", "brightness", "saturation", "contrast", "down", "right", "row", "column"]
    assert len(names) == DRAWS
    return torch.tensor([[given.get(name, 0.5) for name in names]])


def test_image_reconstruction_and_condition_get_one_draw_by_key_and_step() -> None:
    wrapper = AugmentedConfig(discriminator=PairConfig(discriminator=PLAIN, blur=0.0), noise=0.2).build(3, (32, 32))
    record, again = make_record(wrapper), make_record(wrapper, slice(1, 3))
    seen: list[Tensor] = []
    wrapper.inner.inner.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    wrapper.train()(*wrapper.inputs(record, record.images))
    image, condition = seen[0].split(3, dim=1)
    assert torch.equal(image, condition) and (image - record.images).abs().mean() > 0.1
    wrapper(*wrapper.inputs(again, again.images))
    torch.testing.assert_close(seen[1], seen[0][1:3])
    again.step = 1
    again._shared.clear()
    wrapper(*wrapper.inputs(again, again.images))
    assert not torch.allclose(seen[2], seen[1], atol=0.1)
    wrapper.eval()(*wrapper.inputs(again, again.images))
    assert torch.equal(seen[3][:, :3], again.images)


def test_without_keys_draws_come_from_torchs_generator() -> None:
    wrapper = AugmentedConfig(discriminator=PLAIN).build(3, (32, 32))
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        images = torch.zeros(2, 3, 32, 32)
        found.append(wrapper.inputs(Record(images, images), images)[1])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_operations_by_hand() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 16, 24)
    assert torch.allclose(augment(images, draws(), ALWAYS, ("color", "translation")), images, atol=1e-6)
    assert torch.equal(augment(images, draws(brightness=0.9), 0 * ALWAYS, ("color", "translation", "cutout")), images)
    brighter = augment(images, draws(brightness=0.75), ALWAYS, ("color",))
    torch.testing.assert_close(brighter, images + 0.25)
    grey = augment(images, draws(saturation=0.0), ALWAYS, ("color",))
    torch.testing.assert_close(grey, images.mean(1, keepdim=True).expand_as(images))
    sharp = augment(images, draws(contrast=0.999999), ALWAYS, ("color",))
    torch.testing.assert_close(sharp - images.mean(), 1.5 * (images - images.mean()), rtol=1e-4, atol=1e-5)
    shifted = augment(images, draws(down=0.999, right=0.0), ALWAYS, ("translation",))
    assert torch.equal(shifted[..., 2:, :-3], images[..., :-2, 3:])
    assert not shifted[..., :2, :].any() and not shifted[..., -3:].any()
    hole = augment(images, draws(), ALWAYS, ("cutout",)) == 0
    assert hole[0, 0].sum() == 8 * 12 and hole[0, 0, 4:12, 6:18].all()


def test_adas_rule() -> None:
    wrapper = AugmentedConfig(discriminator=INNER, p="ada", policy=("color",), ramp=80).build(3, (32, 32)).train()
    record = make_record(wrapper)

    def after(logit: float, batches: int, images: Tensor) -> float:
        with torch.no_grad():
            wrapper.inner.head.weight.zero_()
            wrapper.inner.head.bias.fill_(logit)
            for _ in range(batches):
                wrapper(*wrapper.inputs(record, images))
        return wrapper.p.item()

    assert after(1.0, 8, record.reconstructions) == 0  # only real images count
    assert after(1.0, 3, record.images) == 0
    assert after(1.0, 1, record.images) == pytest.approx(4 * 8 / 80)
    assert after(1.0, 8, record.images) == 1  # at most
    assert after(-1.0, 4, record.images) == pytest.approx(1 - 4 * 8 / 80)
    assert set(wrapper.state_dict()) - set(wrapper.inner.state_dict(prefix="inner.")) == {"p", "signs", "seen"}
    wrapper.eval()
    assert after(1.0, 4, record.images) == pytest.approx(0.6)


def test_a_fixed_probability_is_no_state() -> None:
    low, high = (AugmentedConfig(discriminator=PLAIN, p=p).build(3, (32, 32)) for p in (0.2, 0.9))
    high.load_state_dict(low.state_dict())
    assert high.p.item() == pytest.approx(0.9)


def test_an_ensembles_gradient_is_the_weighted_mean_of_its_members() -> None:
    wrapper = SeveralConfig(discriminators=(PLAIN, INNER), weights=(1.0, 3.0)).build(3, (32, 32))
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    judgement = wrapper(images)
    alone = [member(images) for member in wrapper.members]
    assert all(torch.equal(a, b.logits[0]) for a, b in zip(judgement.logits, alone, strict=True))
    assert len(judgement.features) == 6 and judgement.features[-1].shape[1] == wrapper.feature_width

    def slope(logits: list[Tensor]) -> Tensor:
        loss = torch.stack([scale.mean() for scale in logits]).mean()
        return torch.autograd.grad(loss, images, retain_graph=True)[0]

    expected = 0.25 * slope(alone[0].logits) + 0.75 * slope(alone[1].logits)
    torch.testing.assert_close(slope(judgement.logits), expected)
    with pytest.raises(ConfigError, match=r"^weights: 1 weights for 2 discriminators: one each"):
        SeveralConfig(discriminators=(PLAIN, INNER), weights=(1.0,))
