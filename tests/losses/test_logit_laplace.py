"""Logit-Laplace: a density, the recorded values, and what the recipe says where the decoder does not fit."""

from __future__ import annotations

import pytest
import torch

import tokenizers_vq as tvq
from tests.golden.test_parts_losses import Case
from tokenizers_vq.losses.logit_laplace import LogitLaplace, logit_laplace_nll
from tokenizers_vq.losses.record import Record
from tokenizers_vq.training.recipe import load_recipe

MODEL = ["model=vqvae-tiny-64", "data=skimage"]
LOGIT = ["model.decoder.output=logit_laplace", "model.pixels.low=0.1", "model.pixels.high=0.9"]


def tokenizer() -> tvq.Tokenizer:
    return tvq.create(
        "vqvae-tiny-64", ["decoder.width=8", "encoder.width=8", *(x.removeprefix("model.") for x in LOGIT)]
    )


@pytest.mark.parametrize("mu", [-2.2, 0.0, 1.3])
@pytest.mark.parametrize("log_b", [-2.0, 0.0, 0.5])
def test_the_density_integrates_to_one(mu: float, log_b: float) -> None:
    # x = sigmoid(t): the integral over (0, 1) becomes one over the line, dx = x (1 - x) dt.
    t = torch.linspace(-14, 14, 200_001, dtype=torch.float64)
    x = torch.sigmoid(t).float().reshape(1, 1, 1, -1)
    output = torch.tensor([mu, log_b]).reshape(1, 2, 1, 1).expand(1, 2, 1, len(t))
    density = torch.exp(-logit_laplace_nll(output, x)).flatten().double()
    integral = torch.trapezoid(density * torch.sigmoid(t) * torch.sigmoid(-t), t)
    assert integral.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["grey", "rgb"])
def test_values_and_gradients_are_the_recorded_ones(name: str) -> None:
    case = Case(f"logit-laplace/{name}")
    output, images = case.io["decoder_output"].requires_grad_(), case.io["target_01"] * 2 - 1
    model = tokenizer()
    pixels = model.to_pixels(images)
    case.equal("mapped", pixels)
    nll = logit_laplace_nll(output, pixels)
    case.equal("nll", nll)
    (gradient,) = torch.autograd.grad((nll * case.io["upstream"]).sum(), output)
    case.equal("nll_grad", gradient)
    record = Record(images, output, tokenizer=model)
    loss = LogitLaplace()(record)
    case.equal("mean_nll", loss)
    (gradient,) = torch.autograd.grad(loss, record.output)
    case.equal("mean_nll_grad", gradient)
    case.equal("images_out_01", (model.render(output).clamp(-1, 1) + 1) / 2)


def test_decode_gives_the_median_and_only_the_image_is_clamped() -> None:
    model = tokenizer().eval()
    output = torch.tensor([[-9.0, 0.0, 9.0, 0.3, 0.3, 0.3]]).reshape(1, 6, 1, 1).expand(1, 6, 4, 4)
    model.decoder.forward = lambda features: output  # type: ignore[method-assign]
    assert model.render(output).abs().max() > 1.2
    decoded = model.decode_features(torch.zeros(1, 8, 1, 1))
    assert decoded[0, :, 0, 0].tolist() == pytest.approx([-1, 0, 1], abs=1e-6)


def test_in_half_precision_the_likelihood_is_float32() -> None:
    images = torch.rand(1, 3, 4, 4) * 2 - 1
    record = Record(images, torch.zeros(1, 6, 4, 4).bfloat16(), tokenizer=tokenizer())
    with torch.autocast("cpu", torch.bfloat16):
        assert LogitLaplace()(record).dtype == torch.float32


def test_a_recipe_without_2c_channels_is_refused() -> None:
    losses = 'losses=[{"kind": "logit_laplace"}]'
    with pytest.raises(ValueError, match=r"model\.decoder\.output.*needs a decoder of 2C channels: give model"):
        load_recipe("vqvae-tiny-64", [*MODEL, losses])
    recipe = load_recipe("vqvae-tiny-64", [*MODEL, losses, *LOGIT])
    assert recipe.model.decoder.output == "logit_laplace"


def test_it_combines_with_other_terms() -> None:
    model = tokenizer()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    out = model(images)
    assert out.output.shape == (2, 6, 16, 16) and out.images.shape == images.shape
    losses = 'losses=[{"kind": "l1"}, {"kind": "l2"}, {"kind": "logit_laplace", "weight": 0.1}]'
    terms = [config.build() for config in load_recipe("vqvae-tiny-64", [*MODEL, *LOGIT, losses]).losses]
    record = Record(images, out.output, tokenizer=model)
    total = sum(term.weight * term(record) for term in terms)
    (gradient,) = torch.autograd.grad(total, record.output)
    assert (gradient[:, :3] != 0).any() and (gradient[:, 3:] != 0).any()
    assert [term.name for term in terms] == ["l1", "l2", "logit_laplace"]
