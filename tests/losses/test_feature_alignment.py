"""Alignment with a backbone beyond its laws: grids that differ, several of them, none; channels; stages."""

from __future__ import annotations

import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import ConfigError
from tokenizers_vq.losses.feature_alignment import FeatureAlignmentConfig, distance_matrix, marginal_cosine, resized
from tokenizers_vq.losses.record import Record
from tokenizers_vq.training.recipe import load_recipe

LITE = "tf_efficientnet_lite0"


def narrow(preset: str, *overrides: str) -> tvq.Tokenizer:
    torch.manual_seed(0)
    return tvq.create(preset, list(overrides))


def record_of(tokenizer: tvq.Tokenizer, images: torch.Tensor) -> Record:
    with torch.no_grad():
        out = tokenizer(images, render=False)
    return Record(Batch(images), out.output, features=out.features, quantized=out.quantized, tokenizer=tokenizer)


def test_vectors_alike_cost_nothing_whatever_their_length() -> None:
    z = torch.randn(2, 6, 3, 4)
    assert marginal_cosine(z, 3 * z).item() == pytest.approx(0, abs=1e-6)
    assert marginal_cosine(z, -z).item() == pytest.approx(2)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q  # the similarities among positions stay
    assert distance_matrix(z, torch.einsum("cd,bdhw->bchw", rotation, 2 * z)).item() == pytest.approx(0, abs=1e-6)


def test_maps_are_resized_to_the_grid() -> None:
    features = torch.randn(1, 5, 8, 8)
    assert resized(features, features.shape[-2:]) is features
    assert resized(features, torch.Size((4, 2))).shape == (1, 5, 4, 2)
    assert resized(torch.ones(1, 5, 8, 8), torch.Size((3, 3))).sub(1).abs().max() < 1e-6


def test_every_grid_has_its_projection() -> None:
    small = ["image_size=32", "encoder.width=8", "decoder.width=8", "encoder.block_width=4"]
    tokenizer = narrow("vqvae2-tiny-64", *small)
    term = FeatureAlignmentConfig(backbone=LITE, stage=1).build(tokenizer)
    record = record_of(tokenizer, torch.rand(2, 3, 32, 32) * 2 - 1)
    gradients = torch.autograd.grad(term(record), [*record.leaves[1:], *term.projections.parameters()])
    assert len(term.projections) == len(record.leaves) - 1 == 2
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_other_channels_are_averaged_over_triples() -> None:
    tokenizer = narrow("vqvae-tiny-64", "channels=5", "image_size=32", "encoder.width=8", "decoder.width=8")
    images = torch.rand(2, 5, 32, 32) * 2 - 1
    term = FeatureAlignmentConfig(backbone=LITE, stage=1, bands=[[0, 1, 2], [2, 3, 4]]).build(tokenizer)
    each = [term.network.stages(images[:, triple], [1])[0] for triple in ([0, 1, 2], [2, 3, 4])]
    expected = term.loss(term.projections[0](record_of(tokenizer, images).features), sum(each) / 2)
    assert term(record_of(tokenizer, images)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(ValueError, match="needs features on a grid of rows and columns"):
        FeatureAlignmentConfig().build(narrow("titok-tiny-64"))
    small = ["image_size=32", "encoder.width=8", "decoder.width=8", "encoder.block_width=4"]
    with pytest.raises(
        ValueError, match=r"^losses\.feature_alignment\.adaptive: needs features on one grid, .* on 2: set"
    ):
        FeatureAlignmentConfig(adaptive=True).build(narrow("vqvae2-tiny-64", *small))
    with pytest.raises(
        ConfigError, match=r"losses: 'feature_alignment' trains the encoder, which train=decoder freezes"
    ):
        load_recipe("vqgan-tiny-64", ["losses=[{kind: l1}, {kind: feature_alignment}]", "train=decoder"])
    with pytest.raises(ValueError, match=r"has stages 0 to 4, .*got \[7\]"):
        FeatureAlignmentConfig(backbone=LITE, stage=7).build(narrow("vqvae-tiny-64"))
