"""A discriminator around another: its config holds one of the union, itself included, and everything passes through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from tests.laws.adversaries import PLAIN, make_adversary, make_record
from tokenizers_vq import discriminators
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config, ConfigError, parse
from tokenizers_vq.discriminators import PatchGANConfig, StyleGAN2Config, saved
from tokenizers_vq.discriminators.base import Judgement, Wrapper
from tokenizers_vq.training.advice import spectral_norm
from tokenizers_vq.training.recipe import load_recipe

if TYPE_CHECKING:
    from tokenizers_vq.discriminators import DiscriminatorConfig


class FlippedConfig(Config):
    """The inner discriminator sees images from the right to the left."""

    kind: Literal["flipped"] = "flipped"
    discriminator: DiscriminatorConfig
    bias: float = 0.5

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> Flipped:
        return Flipped(self, channels, image_size)


class Flipped(Wrapper):
    def forward(self, *inputs: Any) -> Judgement:
        images, *rest = inputs
        judgement = self.inner(images.flip(-1), *rest)
        drift = self.config.bias * judgement.logits[0].square().mean()
        return judgement._replace(losses={**judgement.losses, "drift": drift})


UNION = Annotated[PatchGANConfig | StyleGAN2Config | FlippedConfig, Field(discriminator="kind")]
discriminators.complete(UNION)


def test_a_wrapper_of_a_wrapper_is_written_read_built_and_saved(tmp_path: Path) -> None:
    inner = {"kind": "flipped", "discriminator": {"kind": "patchgan", "width": 4, "layers": 2}}
    config: Any = TypeAdapter(UNION).validate_python({"kind": "flipped", "bias": 2.0, "discriminator": inner})
    assert config.discriminator.discriminator == PatchGANConfig(width=4, layers=2)
    assert TypeAdapter(UNION).validate_python(json.loads(json.dumps(config.to_dict()))) == config
    torch.manual_seed(0)
    wrapper, other = (config.build(3, (32, 48)) for _ in range(2))
    saved.save(wrapper, tmp_path)
    assert saved.fill(other, tmp_path) is None
    images = torch.rand(2, 3, 32, 48)
    assert torch.equal(wrapper(images).logits[0], other(images).logits[0])
    assert torch.equal(wrapper.inner.inner.eval()(images).logits[0], wrapper.eval()(images).logits[0])
    with pytest.raises(ConfigError, match=r"^discriminator\.discriminator\.layers: "):
        parse(FlippedConfig, {"discriminator": {**inner, "discriminator": {"kind": "patchgan", "layers": 0}}})


def test_what_the_inner_one_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="powers of two"):
        FlippedConfig(discriminator=StyleGAN2Config()).build(3, (32, 48))
    wrapper = FlippedConfig(discriminator=StyleGAN2Config(width=1 / 64)).build(3, (32, 64))
    batch = make_record(wrapper).batch
    with pytest.raises(ValueError, match="this stylegan2 was built for images of 32x64, got 32x32"):
        wrapper.check(batch)


def test_losses_of_a_judgement_are_added_and_logged() -> None:
    adversary = make_adversary()
    record = make_record(adversary.discriminator)
    plain, _ = adversary.own_loss(adversary.discriminator, record)
    wrapper = FlippedConfig(discriminator=PLAIN, bias=0.0).build(3, (32, 32))
    wrapper.inner.load_state_dict(adversary.discriminator.state_dict())

    def flipped(images: Tensor) -> Judgement:
        return wrapper(images.flip(-1))

    same, _ = adversary.own_loss(flipped, record)  # type: ignore[arg-type]
    torch.testing.assert_close(same, plain)
    wrapper.config = wrapper.config.replace(bias=2.0)
    more, figures = adversary.own_loss(flipped, record)  # type: ignore[arg-type]
    added = figures["adversary/drift_real"] + figures["adversary/drift_fake"]
    assert added > 0
    torch.testing.assert_close(more - plain, added, rtol=1e-3, atol=1e-6)


def test_advice_reaches_the_inner_one() -> None:
    recipe = load_recipe("vqgan-tiny-64")
    assert recipe.adversary is not None

    def advised(discriminator: Any) -> list[str]:
        adversary = recipe.adversary.model_copy(update={"discriminator": discriminator})  # type: ignore[union-attr]
        return [o for a in spectral_norm(recipe.model_copy(update={"adversary": adversary})) for o in a.overrides]

    assert advised(PatchGANConfig(norm="spectral")) == advised(StyleGAN2Config()) == []
    assert advised(PatchGANConfig()) == ["adversary.discriminator.norm=spectral"]
    wrapped = FlippedConfig(discriminator=PatchGANConfig())
    assert advised(wrapped) == ["adversary.discriminator.discriminator.norm=spectral"]


@pytest.mark.parametrize(
    ("inner", "field"),
    [
        ({"kind": "projection", "num_classes": 2, "discriminator": {"kind": "unet", "width": 4}}, "num_classes"),
        ({"kind": "attention", "width": 4, "resolution": 3}, "resolution"),
        ({"kind": "stylegan2", "width": 0.02}, "stddev_group"),
        ({"kind": "joint", "dim": 7, "discriminator": {"kind": "unet", "width": 4}}, "dim"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else value,
)
@pytest.mark.parametrize("around", ["augmented", "pair", "several", "two"])
def test_what_an_inner_one_refuses_names_the_field_where_it_stands(
    inner: dict[str, Any], field: str, around: str
) -> None:
    config, path = {
        "augmented": ({"kind": "augmented", "discriminator": inner}, "discriminator"),
        "pair": ({"kind": "pair", "discriminator": inner}, "discriminator"),
        "several": ({"kind": "several", "discriminators": [{"kind": "unet"}, inner]}, "discriminators.1"),
        "two": (
            {"kind": "augmented", "discriminator": {"kind": "several", "discriminators": [inner]}},
            "discriminator.discriminators.0",
        ),
    }[around]
    tokenizer = load_recipe("vqgan-tiny-64", ["model.image_size=32"]).model.build()
    with pytest.raises(ValueError, match=rf"^adversary\.discriminator\.{path.replace('.', chr(92) + '.')}\.{field}: "):
        built = TypeAdapter(discriminators.DiscriminatorConfig).validate_python(config).build(3, (32, 32))
        built.check_tokenizer(tokenizer)
        built.check(Batch(torch.zeros(1, 3, 32, 32), labels=torch.tensor([5])))
