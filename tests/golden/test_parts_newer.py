"""Quantizers of 2025 and 2026 against recorded tensors of their references, and of vector-quantize-pytorch."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import shared
from tests.golden.test_parts_quantizers import close
from tokenizers_vq.quantizers import (
    BsqQuantizer,
    DiveqQuantizer,
    FsqQuantizer,
    IbqQuantizer,
    LfqQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    VqBridgeQuantizer,
)
from tokenizers_vq.quantizers.diveq import moved, moved_between, on_curve


def recorded(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    folder = shared(f"golden/parts/{case}")
    weights = folder / "weights.safetensors"
    meta = json.loads((folder / "meta.json").read_text())
    return load_file(weights) if weights.exists() else {}, load_file(folder / "io.safetensors"), meta


def gradient(value: Tensor, wrt: Tensor) -> Tensor:
    return torch.autograd.grad(value, wrt, retain_graph=True)[0]


@pytest.mark.parametrize("case", ["sigmoid16-17x4", "sigmoid16-groups", "tanh-even-levels"])
def test_ifsq(case: str) -> None:
    _, io, meta = recorded(f"ifsq/{case}")
    arguments, tolerance = meta["arguments"], meta["tolerance"]
    sigmoid = {"activation": "sigmoid"} if arguments["do_simple_bound"] else {"bound": "atanh"}
    levels, groups = arguments["levels"], arguments["factorized_bits"] or [len(arguments["levels"])]
    starts = [sum(groups[:n]) for n in range(len(groups))]
    books = [{"kind": "fsq", "levels": levels[s : s + n], **sigmoid} for s, n in zip(starts, groups, strict=True)]
    quantizer = ProductQuantizer(groups=len(groups), book=tuple(books))
    z = io["z"].requires_grad_()
    result = quantizer(z)
    assert torch.equal(result.codes.reshape(io["codes"].shape), io["codes"])
    close(result.features, io["quantized"], tolerance["quantized"])
    close(gradient((result.features * io["upstream"]).sum(), z), io["quantized_grad_z"], tolerance["quantized_grad_z"])
    whole = FsqQuantizer(levels=levels, **sigmoid)
    assert torch.equal(whole.encode(z), io["global_codes"])
    close(whole.bounded(z.movedim(1, -1)).movedim(-1, 1), io["bounded"], tolerance["bounded"])


@pytest.mark.parametrize("case", ["detach", "noise", "vqp-directional"])
def test_diveq(case: str) -> None:
    weights, io, meta = recorded(f"diveq/{case}")
    tolerance, width = meta["tolerance"], io["z"].shape[-1]
    z = io["z"].reshape(-1, width).requires_grad_()
    given = weights.get("codebook", weights.get("_codebook.embed")).reshape(-1, width)
    quantizer = DiveqQuantizer(num_codes=len(given), dim=width, noise=0.0)
    quantizer.weight.data.copy_(given)
    codes = quantizer.encode(z.T[None])
    assert torch.equal(codes.flatten(), io["codes"].flatten())
    deviation = {"detach": 0.0, "noise": 0.05, "vqp-directional": 5e-3**0.5}[case]
    noise = deviation * io["noise"].reshape(-1, width) if deviation else 0.0
    quantized = moved(z, torch.nn.functional.embedding(codes[0], quantizer.weight), noise)
    upstream = io["upstream"].reshape(-1, width)
    close(quantized, io["quantized"].reshape(-1, width), tolerance["quantized"])
    to_z, to_book = torch.autograd.grad((quantized * upstream).sum(), (z, quantizer.weight))
    close(to_z, io["quantized_grad_z"].reshape(-1, width), tolerance["quantized_grad_z"])
    name = "quantized_grad_embed" if case == "vqp-directional" else "quantized_grad_codebook"
    close(to_book, io[name].reshape(-1, width), tolerance[name])
    if case == "detach":  # the whole quantizer, which draws nothing then
        result = quantizer(z.T[None])
        close(result.features[0].T, io["quantized"], tolerance["quantized"])
        total = (result.features[0].T * upstream).sum()
        close(gradient(total, quantizer.weight), io["quantized_grad_codebook"], tolerance["quantized_grad_codebook"])


def test_space_filling_diveq(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, io, meta = recorded("diveq/space-filling")
    tolerance, z = meta["tolerance"], io["z"].requires_grad_()
    quantizer = DiveqQuantizer(num_codes=20, dim=5, noise=0.05, space_filling=True)
    quantizer.weight.data.copy_(weights["codebook"])
    points = on_curve(quantizer.weight.detach(), io["dither"])
    assert torch.equal(torch.cdist(z.detach(), points).argmin(1), io["codes"])
    noises = [0.05 * io[name] for name in ("noise_first", "noise_second")]
    quantized = moved_between(z, quantizer.weight, io["codes"], io["dither"], noises[0], noises[1])
    close(quantized, io["quantized"], tolerance["quantized"])
    to_z, to_book = torch.autograd.grad((quantized * io["upstream"]).sum(), (z, quantizer.weight))
    close(to_z, io["quantized_grad_z"], tolerance["quantized_grad_z"])
    close(to_book, io["quantized_grad_codebook"], tolerance["quantized_grad_codebook"])
    assert torch.equal(quantizer.encode(z.T[None])[0], io["codes_hard"])
    # The training forward, with what it draws given.
    drawn = iter([io["noise_first"], io["noise_second"]])
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: io["dither"])
    monkeypatch.setattr(torch, "randn_like", lambda _: next(drawn))
    result = quantizer(z.T[None])
    close(result.features[0].T, io["quantized"], tolerance["quantized"])
    nearer_end = io["codes"] + (io["dither"][io["codes"], 0] > 0.5)
    assert torch.equal(result.codes[0], nearer_end) and not result.losses


@pytest.mark.parametrize("case", ["mlp-straight-through", "transformer-rotation"])
def test_vq_bridge_of_vector_quantize_pytorch(case: str) -> None:
    weights, io, meta = recorded(f"vq-bridge/{case}")
    tolerance, width = meta["tolerance"], io["z"].shape[-1]
    rotation = case == "transformer-rotation"
    quantizer = VqBridgeQuantizer(
        num_codes=24,
        dim=width,
        network="mlp",
        width=3 * width,
        estimator="rotation" if rotation else "straight_through",
    )
    inner = {key.removeprefix("_codebook.vq_bridge."): value for key, value in weights.items() if "vq_bridge" in key}
    if rotation:  # its bridge has attention across the codes, and positions nowhere
        layer = torch.nn.TransformerEncoderLayer(
            width, 2, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        ).eval()
        layer.load_state_dict(inner)
        quantizer.bridge = torch.nn.Sequential(torch.nn.Unflatten(0, (1, -1)), layer, torch.nn.Flatten(0, 1))
        inner = {f"1.{key}": value for key, value in inner.items()}
    else:
        quantizer.bridge.load_state_dict(inner)
    quantizer.weight.data.copy_(weights["_codebook.embed"][0])
    z = io["z"].movedim(-1, 1).requires_grad_()
    close(quantizer.codebook, io["codebook_bridged"], tolerance["codebook_bridged"])
    result = quantizer(z)
    assert torch.equal(result.codes, io["codes"])
    close(result.features.movedim(1, -1), io["quantized"], tolerance["quantized"])
    through = gradient((result.features.movedim(1, -1) * io["upstream"]).sum(), z).movedim(1, -1)
    close(through, io["straight_through_grad_z"], tolerance["straight_through_grad_z"])
    # Its loss is one term with nothing detached: the codebook's gradient is our `codebook`'s, times the weight.
    weight = meta["arguments"].get("commitment_weight", 1.0)
    close(result.losses["codebook"] * weight, io["loss"], tolerance["loss"])
    to_book = gradient(result.losses["codebook"] * weight, quantizer.weight)
    close(to_book[None], io["loss_grad_embed"], tolerance["loss_grad_embed"])
    to_z = gradient(result.losses["commitment"] * weight / 0.25, z).movedim(1, -1)
    close(to_z, io["loss_grad_z"], tolerance["loss_grad_z"])
    parameters = dict(quantizer.bridge.named_parameters())
    for name in inner:
        theirs = f"loss_grad_bridge.{name.removeprefix('1.') if rotation else name}"
        close(gradient(result.losses["codebook"] * weight, parameters[name]), io[theirs], tolerance[theirs])


def test_wetok_s_groups_share_one_distribution() -> None:
    _, io, meta = recorded("lookup-free-entropy/wetok-3-groups")
    tolerance, z = meta["tolerance"], io["z"].requires_grad_()
    fields = {"bits": 12, "code_bits": 4, "entropy_group": 4, "entropy_mixed": True, "entropy_weight": 1.0, "beta": 1.0}
    result = LfqQuantizer(batch_entropy=1.5, **fields)(z)
    assert torch.equal(result.codes, io["codes"])
    close(result.features, io["quantized"], tolerance["quantized"])
    close(result.losses["entropy"], io["entropy_loss"], tolerance["entropy_loss"])
    close(result.stats["sample_entropy"], io["sample_entropy"], tolerance["sample_entropy"])
    close(result.stats["batch_entropy"], io["code_entropy"], tolerance["code_entropy"])
    close(gradient(result.losses["entropy"], z), io["entropy_loss_grad_z"], tolerance["entropy_loss_grad_z"])
    close(result.losses["commitment"], io["commitment"], tolerance["commitment"])
    close(gradient(result.losses["commitment"], z), io["commitment_grad_z"], tolerance["commitment_grad_z"])
    through = gradient((result.features * io["upstream"]).sum(), z)
    close(through, io["straight_through_grad_z"], tolerance["straight_through_grad_z"])


@pytest.mark.parametrize("case", ["vqp-3-groups", "vqp-spherical"])
def test_groups_kept_apart_are_a_product(case: str) -> None:
    _, io, meta = recorded(f"lookup-free-entropy/{case}")
    arguments, tolerance = meta["arguments"], meta["tolerance"]
    bits = arguments["codebook_size"].bit_length() - 1
    # Squared distances on the sphere: 2 <x, c> / 0.01 there is -|x - c|^2 / 0.01 here.
    book = {
        "kind": "bsq" if arguments.get("spherical") else "lfq",
        "bits": bits,
        "beta": arguments["commitment_loss_weight"],
        "entropy_group": bits,
        "entropy_temperature": 0.01,
        "batch_entropy": arguments.get("diversity_gamma", 1.0),
        "first_channel": "most",
    }
    quantizer = ProductQuantizer(groups=arguments["num_codebooks"], book=book)
    z = io["z"].movedim(-1, 1).requires_grad_()
    result = quantizer(z)
    assert torch.equal(result.codes, io["codes"])
    close(result.features.movedim(1, -1), io["quantized"], tolerance["quantized"])
    # Logarithms are cut at 1e-5 there, not here: of 2^bits probabilities.
    slack = 2e-5 * 2**bits
    close(result.stats["sample_entropy"], io["sample_entropy"], tolerance["sample_entropy"] + slack)
    close(result.losses["commitment"], arguments["commitment_loss_weight"] * io["commitment"], 1e-5)
    through = gradient((result.features.movedim(1, -1) * io["upstream"]).sum(), z).movedim(1, -1)
    close(through, io["straight_through_grad_z"], tolerance["straight_through_grad_z"])


@pytest.mark.parametrize("case", ["analytical-12bits", "groups-of-4"])
def test_bsq_vit(case: str) -> None:
    _, io, meta = recorded(f"bsq/{case}")
    arguments, tolerance = meta["arguments"], meta["tolerance"]
    group, weight = arguments["group_size"], arguments["zeta"] / arguments["inv_temperature"]
    fields = {
        "bits": 12,
        "first_channel": "most",
        "beta": 12 * arguments["beta"],  # its commitment is a sum over channels
        "entropy_weight": weight,
        "sample_entropy": arguments["gamma0"],
        "batch_entropy": arguments["gamma"],
        "entropy_group": group,
        "entropy_temperature": 1 / arguments["inv_temperature"],
    }
    h = io["h"].movedim(-1, 1).requires_grad_()
    result = BsqQuantizer(**fields)(h)
    assert torch.equal(result.codes, io["codes"])
    in_groups = BsqQuantizer(**fields, code_bits=group).encode(h)
    assert torch.equal(in_groups, io["group_codes"])
    close(result.features.movedim(1, -1), io["quantized"], tolerance["quantized"])
    slack = 2e-5 * 2**group * 12 / group  # 1e-5 inside our logarithm, 1e-8 inside theirs
    close(result.stats["sample_entropy"], io["sample_entropy"], tolerance["sample_entropy"] + slack)
    close(result.stats["batch_entropy"], io["code_entropy"], tolerance["code_entropy"] + slack)
    close(sum(result.losses.values()), io["loss"], tolerance["loss"] + 2 * slack)  # what is left is the commitment
    through = gradient((result.features.movedim(1, -1) * io["upstream"]).sum(), h).movedim(1, -1)
    # It passes the gradient to signs of -1 and 1, which it divides by sqrt(bits) then; ours passes it to the code.
    close(through / 12**0.5, io["straight_through_grad_h"], tolerance["straight_through_grad_h"])


def test_unitok_s_quantizer_is_a_product_of_cosine_books() -> None:
    weights, io, meta = recorded("unitok-quantizer/four-codebooks-entropy")
    tolerance = meta["tolerance"]
    book = {"kind": "vector", "num_codes": 16, "dim": 4, "distance": "cosine", "beta": 0.25}
    quantizer = ProductQuantizer(groups=4, book={**book, "entropy_weight": 1.0, "entropy_temperature": 0.05})
    books = [group.weight for group in quantizer.groups]
    for number, given in enumerate(books):
        given.data.copy_(weights[f"codebooks.{number}.codebook.weight"])
    z = io["z"].movedim(-1, 1).requires_grad_()
    result = quantizer(z)
    assert torch.equal(result.codes.movedim(-1, 1), io["codes"])
    close(result.features.movedim(1, -1), io["quantized"], tolerance["quantized"])
    vq = result.losses["commitment"] + result.losses["codebook"]
    for name, loss in [("vq_loss", vq), ("entropy_loss", result.losses["entropy"])]:
        slack = 16 * 1e-5 if name == "entropy_loss" else 0.0  # 1e-5 inside our logarithm, 1e-7 inside theirs
        close(loss, io[name], tolerance[name] + slack)
        close(gradient(loss, z).movedim(1, -1), io[f"{name}_grad_z"], tolerance[f"{name}_grad_z"] + slack / 10)
        for number, given in enumerate(books):
            key = f"{name}_grad_codebook_{number}"
            close(gradient(loss, given), io[key], tolerance[key] + slack / 10)
    through = gradient((result.features.movedim(1, -1) * io["upstream"]).sum(), z).movedim(1, -1)
    close(through, io["straight_through_grad_z"], tolerance["straight_through_grad_z"])


def test_residual_lfq() -> None:
    _, io, meta = recorded("residual-lfq/three-levels")
    quantizer = ResidualQuantizer(levels=3, book={"kind": "lfq", "bits": 4, "first_channel": "most"})
    result = quantizer(io["z"].movedim(-1, 1))
    assert torch.equal(result.codes, io["codes"])
    close(result.features.movedim(1, -1), io["quantized"], meta["tolerance"]["quantized"])
    for level, theirs in enumerate(io["codes_all"]):
        ours = quantizer.addend(result.codes[..., level], level)
        close(ours.movedim(1, -1), theirs, meta["tolerance"]["codes_all"])


def test_index_backpropagation() -> None:
    weights, io, meta = recorded("vq-loss-ibq/dot-entropy")
    tolerance = meta["tolerance"]
    quantizer = IbqQuantizer(num_codes=24, dim=6, beta=0.25, entropy_weight=1.0, entropy_temperature=0.5)
    quantizer.weight.data.copy_(weights["embedding.weight"])
    z = io["z"].requires_grad_()
    result = quantizer(z)
    assert torch.equal(result.codes, io["codes"])
    close(result.features, io["quantized"], tolerance["quantized"])
    losses = {
        "quant_loss": sum(result.losses[name] for name in ("double", "commitment", "codebook")),
        "entropy_loss": result.losses["entropy"],
        "straight_through": (result.features * io["upstream"]).sum(),
    }
    for name, loss in losses.items():
        if name in io:
            close(loss, io[name], tolerance[name])
        for wrt, key in ((z, f"{name}_grad_z"), (quantizer.weight, f"{name}_grad_codebook")):
            close(gradient(loss, wrt), io[key], tolerance[key])
