"""Perceptual terms beyond law 14 (tests/laws): channel counts, weights of elsewhere, what is said without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from tests.conftest import shared
from tokenizers_vq.config import Config, ConfigError
from tokenizers_vq.discriminators import PatchGANConfig
from tokenizers_vq.discriminators.base import Judgement
from tokenizers_vq.discriminators.patchgan import PatchGAN
from tokenizers_vq.losses import TermConfig, perceptual
from tokenizers_vq.losses.objectives import adaptive_weight
from tokenizers_vq.losses.perceptual import LpipsNetwork, Perceptual, PerceptualConfig, find_trunk, unit
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.training.recipe import load_recipe


def make(kind: str, **fields: Any) -> Term:
    if kind == "lpips":
        fields |= {"net": "squeeze", "trunk": str(shared("data/backbones/squeezenet1_1_fp16.pth"))}
    return TypeAdapter(TermConfig).validate_python({"kind": kind, **fields}).build()


def pair(channels: int = 3, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, channels, size, size) * 2 - 1, torch.rand(2, channels, size, size) * 2 - 1


def record_of(images: torch.Tensor, output: torch.Tensor) -> Record:
    return Record(images, output)


def test_unit_vectors_have_a_finite_gradient_at_zero() -> None:
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    for eps in (1e-20, 1e-6):
        (gradient,) = torch.autograd.grad(unit(features, eps).sum(), features)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["lpips", "perceptual", "classifier_logits"])
def test_one_channel_is_repeated(kind: str) -> None:
    term, (images, output) = make(kind), pair(1)
    grey = term(record_of(images, output))
    colour = term(record_of(images.repeat(1, 3, 1, 1), output.repeat(1, 3, 1, 1)))
    assert grey.item() == pytest.approx(colour.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["lpips", "perceptual", "classifier_logits"])
def test_other_channel_counts_are_refused_or_averaged_over_triples(kind: str) -> None:
    images, output = pair(5)
    with pytest.raises(ValueError, match=r"images have 5; set `bands`"):
        make(kind)(record_of(images, output))
    both = make(kind, bands=[[0, 1, 2], [4, 3, 0]])(record_of(images, output))
    each = [make(kind)(record_of(images[:, triple], output[:, triple])) for triple in ([0, 1, 2], [4, 3, 0])]
    assert both.item() == pytest.approx(sum(loss.item() for loss in each) / 2, rel=1e-5)
    with pytest.raises(ValueError, match="`bands` names channel 7, images have channels 0 to 4"):
        make(kind, bands=[[0, 1, 7]])(record_of(images, output))


@pytest.mark.parametrize("kind", ["lpips", "perceptual", "classifier_logits"])
def test_networks_stay_frozen_and_in_eval_mode(kind: str) -> None:
    term = make(kind).train()
    assert not any(module.training for module in term.network.modules())
    assert not any(parameter.requires_grad for parameter in term.parameters())


def test_stage_weights() -> None:
    images, output = pair()
    single = [Perceptual(stages=(stage,))(record_of(images, output)).item() for stage in (1, 3)]
    both = Perceptual(stages=(1, 3), stage_weights=(2.0, 0.5))(record_of(images, output)).item()
    assert both == pytest.approx((2 * single[0] + 0.5 * single[1]) / 2, rel=1e-5)
    with pytest.raises(ConfigError, match="stage_weights: needs one weight for each of the stages"):
        PerceptualConfig(stage_weights=(1.0,))


def test_adaptive_weight_at_perfect_reconstruction_and_at_its_ends() -> None:
    zero, some = torch.zeros(3, 4), torch.ones(3, 4)
    assert adaptive_weight(zero, some) == 0
    assert adaptive_weight(zero, zero) == 0
    assert adaptive_weight(some, zero) == 1e4
    assert adaptive_weight(some.requires_grad_(), some).requires_grad is False


def test_a_missing_trunk_is_one_line_with_both_ways_out(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Weights:
        url = "https://example.invalid/vgg16.pth"

        def get_state_dict(self, **_: Any) -> None:
            raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(perceptual, "_torchvision_weights", lambda net: Weights())
    monkeypatch.delenv("TVQ_LPIPS_VGG", raising=False)
    assert find_trunk("vgg") is None
    with pytest.raises(FileNotFoundError) as caught:
        LpipsNetwork("vgg")
    message = str(caught.value)
    assert "`trunk: path`, --lpips-trunk or TVQ_LPIPS_VGG" in message
    assert "kind `perceptual`" in message
    assert "pip install tokenizers-vq[backbones]" in message
    assert "\n" not in message
    with pytest.raises(FileNotFoundError, match=r"trunk names nowhere\.pth, which does not exist"):
        LpipsNetwork("vgg", "nowhere.pth")


def test_a_trunk_can_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared("data/backbones/squeezenet1_1_fp16.pth")
    monkeypatch.setenv("TVQ_LPIPS_SQUEEZE", str(path))
    assert find_trunk("squeeze") == path
    first, second = pair()
    assert torch.equal(LpipsNetwork("squeeze")(first, second), LpipsNetwork("squeeze", path)(first, second))


def test_another_networks_file_is_refused(tmp_path: Any) -> None:
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not the weights of torchvision's SqueezeNet1_1"):
        LpipsNetwork("squeeze", tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a file of torch")
    with pytest.raises(ValueError, match="not a torchvision state dict") as caught:
        LpipsNetwork("squeeze", tmp_path / "broken.pth")
    assert "\n" not in str(caught.value)


def test_unknown_kind_names_the_nearest() -> None:
    class Recipe(Config):
        losses: tuple[TermConfig, ...]

    with pytest.raises(ConfigError, match="did you mean 'lpips'"):
        Recipe(losses=[{"kind": "lpip"}])


def test_terms_on_the_same_stages_share_the_features() -> None:
    record, passes = record_of(*pair()), []
    for kind in ("perceptual", "gram"):
        term = make(kind, backbone="tf_efficientnet_lite0")
        term.network.model.conv_stem.register_forward_hook(lambda *_: passes.append(1))
        (gradient,) = torch.autograd.grad(term(record), record.output, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert len(passes) == 2  # the images once, the reconstructions once


def test_focal_frequency_without_a_focus_is_squared_error() -> None:
    record = record_of(*pair())
    assert make("focal_frequency", alpha=0)(record).item() == pytest.approx(make("l2")(record).item() / 4, rel=1e-5)


def test_a_focus_lies_where_the_difference_is_largest() -> None:
    """Two waves are missing: the stronger one has weight 1, the other its share of the amplitude."""
    ramp = torch.arange(32.0) * 2 * torch.pi / 32
    weak, strong = (0.1 * torch.cos(3 * ramp)).expand(1, 1, 32, 32), (0.4 * torch.cos(9 * ramp)).expand(1, 1, 32, 32)
    squares = [(wave / 2).square().mean().item() for wave in (weak, strong)]
    loss = make("focal_frequency")(record_of(weak + strong, torch.zeros(1, 1, 32, 32)))
    assert loss.item() == pytest.approx(0.25 * squares[0] + squares[1], rel=1e-4)


def test_feature_matching_compares_means_not_pairs() -> None:
    """Batches that hold the same images in another order are alike."""
    images, _ = pair(3, 32)
    discriminator = PatchGANConfig(width=4, layers=2).build(3, (32, 32)).eval()
    loss = make("feature_matching")(Record(images, images.flip(0), discriminator=discriminator))
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert make("feature_matching")(Record(images, -images, discriminator=discriminator)).item() > 1e-4


def test_feature_matching_says_what_it_needs() -> None:
    class Silent(PatchGAN):
        def forward(self, images: torch.Tensor) -> Judgement:
            return super().forward(images)._replace(features=[])

    images, output = pair(3, 32)
    with pytest.raises(ValueError, match="add an `adversary` to the recipe"):
        make("feature_matching")(record_of(images, output))
    silent = Silent(3, width=4, layers=2)
    with pytest.raises(ValueError, match="gives no features to match"):
        make("feature_matching")(Record(images, output, discriminator=silent))
    with pytest.raises(ConfigError, match=r"adversary: .*needs a discriminator"):
        load_recipe("vqgan-tiny-64", ["data=skimage", "losses=[{kind: feature_matching}]", "adversary=null"])


def test_a_backbone_without_a_classifier_has_no_logits(monkeypatch) -> None:
    import timm

    headless = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    monkeypatch.setattr("tokenizers_vq.networks.backbones.load_backbone", lambda name: headless)
    with pytest.raises(ValueError, match="tf_efficientnet_lite1 has no classifier: name one"):
        make("classifier_logits")
