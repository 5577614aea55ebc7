"""Alignment of features against recorded tensors of VA-VAE and of REPA as GigaTok has it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.golden.test_parts_losses import Case
from tests.laws.terms import tokenizer
from tokenizers_vq.losses.feature_alignment import (
    FeatureAlignmentConfig,
    distance_matrix,
    marginal_cosine,
    projection,
)
from tokenizers_vq.losses.objectives import adaptive_weight
from tokenizers_vq.training import gradients


@pytest.mark.parametrize("name", ["margins", "no-margins"])
def test_vavae(name: str) -> None:
    case = Case(f"vf-alignment/{name}")
    given = case.meta["arguments"]
    config = FeatureAlignmentConfig(
        cosine_margin=given["cos_margin"], matrix_margin=given["distmat_margin"], matrix_weight=given["distmat_weight"]
    )
    project = projection(config, given["latent_channels"], given["feature_channels"])
    project.load_state_dict({"0.weight": case.weights["projection.weight"]}, strict=True)
    z = project(case.io["latent"])
    case.equal("z", z)
    z = case.io["z"].requires_grad_()
    for kind, loss in (
        ("cosine", marginal_cosine(z, case.io["features"], given["cos_margin"])),
        ("distance", distance_matrix(z, case.io["features"], given["distmat_margin"])),
    ):
        case.equal(f"{kind}_loss", loss)
        case.equal(f"{kind}_loss_grad_z", torch.autograd.grad(loss, z)[0])
    total = config.build(tokenizer()).loss(project(case.io["latent"]), case.io["features"])
    case.equal("total", total)
    case.equal("total_grad_projection", torch.autograd.grad(total, project.parameters())[0])


@pytest.mark.parametrize("name", ["margins", "no-margins"])
def test_vavaes_adaptive_weight(name: str) -> None:
    """By gradients at the latents, carried to the layer that makes them, as the step has it."""
    case = Case(f"vf-alignment/{name}")
    given = case.meta["arguments"]
    weight, bias = case.weights["last_layer.weight"].requires_grad_(), case.weights["last_layer.bias"]
    latent = torch.nn.functional.conv2d(case.io["features_in"], weight, bias)
    case.equal("latent", latent)
    config = FeatureAlignmentConfig(
        cosine_margin=given["cos_margin"], matrix_margin=given["distmat_margin"], matrix_weight=given["distmat_weight"]
    )
    leaf = latent.detach().requires_grad_()
    z = torch.nn.functional.conv2d(leaf, case.weights["projection.weight"])
    nll, total = (leaf - case.io["target"]).abs().mean(), config.build(tokenizer()).loss(z, case.io["features"])
    norms = []
    for kind, loss in (("nll", nll), ("total", total)):
        found = gradients.pulled([latent], gradients.at(loss, [leaf]), weight)
        case.equal(f"{kind}_grad_last_layer", found)
        norms.append(found)
    case.equal("adaptive_weight", given["vf_weight"] * adaptive_weight(*norms, max=1e8))


def test_repa() -> None:
    case = Case("repa-alignment/small")
    given = case.meta["arguments"]
    config = FeatureAlignmentConfig(projection="mlp", hidden=4 * given["width"])
    project = projection(config, given["width"], given["feature_dim"])
    shaped = {key: value[..., None, None] if value.ndim == 2 else value for key, value in case.weights.items()}
    project.load_state_dict(shaped, strict=True)

    def grid(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (3, 3))

    hidden = grid(case.io["hidden"]).requires_grad_()
    projected = project(hidden)
    case.equal("projected", projected.flatten(2).transpose(1, 2))
    loss = config.build(tokenizer()).loss(projected, grid(case.io["features"]))
    case.equal("loss", loss - 1)  # theirs is minus the cosine
    gradients = torch.autograd.grad(loss, [hidden, projected, *project.parameters()])
    for name, gradient in zip(("hidden", "projected"), gradients[:2], strict=True):
        case.equal(f"loss_grad_{name}", gradient.flatten(2).transpose(1, 2))
    for (name, _), gradient in zip(project.named_parameters(), gradients[2:], strict=True):
        case.equal(f"loss_grad_{name}", gradient)
