"""Vector quantizers against recorded tensors of taming, enhancing-transformers and rosinality's VQ-VAE-2."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import shared
from tokenizers_vq.quantizers import VectorQuantizer


def recorded(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    folder = shared(f"golden/parts/{case}")
    meta = json.loads((folder / "meta.json").read_text())
    return load_file(folder / "weights.safetensors"), load_file(folder / "io.safetensors"), meta


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance


def check_losses(quantizer: VectorQuantizer, z: Tensor, io: dict[str, Tensor], meta: dict[str, Any], back: Any) -> None:
    z = z.requires_grad_()
    result = quantizer(z)
    tolerance = meta["tolerance"]
    assert torch.equal(result.codes.flatten(), io["codes"].flatten())
    close(back(result.features), io["quantized"], tolerance["quantized"])
    loss = sum(result.losses.values())
    close(loss, io["loss"].reshape(()), tolerance["loss"])
    to_z, to_book = torch.autograd.grad(loss, (z, quantizer.weight), retain_graph=True)
    close(back(to_z), io["loss_grad_z"], tolerance["loss_grad_z"])
    close(to_book, io["loss_grad_codebook"], tolerance["loss_grad_codebook"])
    (through,) = torch.autograd.grad((back(result.features) * io["upstream"]).sum(), z)
    close(back(through), io["straight_through_grad_z"], tolerance["straight_through_grad_z"])


@pytest.mark.parametrize("case", ["fixed", "legacy"])
def test_taming(case: str) -> None:
    weights, io, meta = recorded(f"vq-loss-taming/{case}")
    quantizer = VectorQuantizer(num_codes=24, dim=6, beta=0.25, legacy_beta=meta["arguments"]["legacy"])
    quantizer.weight.data.copy_(weights["embedding.weight"])
    check_losses(quantizer, io["z"], io, meta, lambda x: x)


def test_enhancing_transformers() -> None:
    weights, io, meta = recorded("vq-loss-vitvqgan/cosine")
    quantizer = VectorQuantizer(num_codes=32, dim=8, beta=0.25, distance="cosine", gradient_through_norm=False)
    quantizer.weight.data.copy_(weights["embedding.weight"])
    check_losses(quantizer, rearrange(io["z"], "b n d -> b d n"), io, meta, lambda x: rearrange(x, "b d n -> b n d"))


@pytest.mark.parametrize("case", ["warm", "cold"])
def test_moving_averages_over_consecutive_steps(case: str) -> None:
    weights, io, meta = recorded(f"ema-codebook/{case}")
    arguments, tolerance = meta["arguments"], meta["tolerance"]
    quantizer = VectorQuantizer(
        num_codes=arguments["n_embed"], dim=arguments["dim"], codebook="ema", decay=arguments["decay"], beta=1.0
    )
    quantizer.weight.copy_(weights["embed"].T)
    quantizer.cluster_size.copy_(weights["cluster_size"])
    quantizer.cluster_sum.copy_(weights["embed_avg"].T)
    for step in range(len(io["z"])):
        z = io["z"][step].movedim(-1, 1).requires_grad_()
        result = quantizer(z)
        assert torch.equal(result.codes, io["codes"][step].reshape(result.codes.shape))
        close(result.features.movedim(1, -1), io["quantized"][step], tolerance["quantized"])
        close(result.losses["commitment"], io["loss"][step].reshape(()), tolerance["loss"])
        (gradient,) = torch.autograd.grad(result.losses["commitment"], z)
        close(gradient.movedim(1, -1), io["loss_grad_z"][step], tolerance["loss_grad_z"])
        close(quantizer.weight.T, io["embed"][step], tolerance["embed"])
        close(quantizer.cluster_size, io["cluster_size"][step], tolerance["cluster_size"])
        close(quantizer.cluster_sum.T, io["embed_avg"][step], tolerance["embed_avg"])


@pytest.mark.parametrize("case", ["plain-entropy", "l2-entropy"])
def test_llamagen(case: str) -> None:
    weights, io, meta = recorded(f"vq-loss-llamagen/{case}")
    arguments, tolerance = meta["arguments"], meta["tolerance"]
    quantizer = VectorQuantizer(
        num_codes=arguments["n_e"],
        dim=arguments["e_dim"],
        beta=arguments["beta"],
        distance="cosine" if arguments["l2_norm"] else "euclidean",
        entropy_weight=arguments["entropy_loss_ratio"],
    )
    quantizer.weight.data.copy_(weights["embedding.weight"])
    z = io["z"].requires_grad_()
    result = quantizer(z)
    assert torch.equal(result.codes.flatten(), io["codes"].flatten())
    close(result.features, io["quantized"], tolerance["quantized"])
    close(result.losses["codebook"], io["vq_loss"].reshape(()), tolerance["vq_loss"])
    close(result.losses["commitment"], io["commit_loss"].reshape(()), tolerance["commit_loss"])
    close(result.losses["entropy"], io["entropy_loss"].reshape(()), tolerance["entropy_loss"])
    for loss, wrt, name in [
        (result.losses["codebook"], quantizer.weight, "vq_loss_grad_codebook"),
        (result.losses["commitment"], z, "commit_loss_grad_z"),
        (result.losses["entropy"], z, "entropy_loss_grad_z"),
        (result.losses["entropy"], quantizer.weight, "entropy_loss_grad_codebook"),
        ((result.features * io["upstream"]).sum(), z, "straight_through_grad_z"),
    ]:
        (gradient,) = torch.autograd.grad(loss, wrt, retain_graph=True)
        close(gradient, io[name], tolerance[name])
