"""Optional parts of decoders: adaptive kernels and L2 attention by hand, the overlapping stage at patch borders."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenizers_vq as tvq
from tests.discriminators.test_attention import lambert
from tokenizers_vq.networks import Decoder
from tokenizers_vq.networks.blocks import Attention
from tokenizers_vq.networks.cosmos import CosmosDecoder
from tokenizers_vq.networks.emu3 import Emu3Decoder
from tokenizers_vq.networks.kernels import AdaptiveConv2d
from tokenizers_vq.networks.vit import VitDecoder
from tokenizers_vq.networks.vqgan import VqganDecoder

ADAPTIVE: dict[str, Any] = {"kernels": 3, "heads": 2, "attention": (1,), "attention_score": "l2"}
VQGAN: dict[str, Any] = {"dim": 4, "width": 8, "groups": 4, "multipliers": (1, 2), "blocks": 1}
VIT: dict[str, Any] = {"dim": 4, "image_size": (16, 16), "patch": 4, "width": 16, "layers": 1, "heads": 2}


def decoders() -> dict[str, Decoder]:
    return {
        "vqgan": VqganDecoder(**VQGAN, **ADAPTIVE),
        "movq": VqganDecoder(**VQGAN, **ADAPTIVE, norm="spatial"),
        "cosmos": CosmosDecoder(**VQGAN, **ADAPTIVE, patch=2, resamplings=1, latent_width=8),
        "emu3": Emu3Decoder(**VQGAN, **ADAPTIVE, frames=2, time_blocks=1),
        "vit, 1 convolution": VitDecoder(**VIT, overlap=1),
        "vit, 3 convolutions": VitDecoder(**VIT, overlap=3, overlap_width=8),
    }


@pytest.fixture(params=decoders())
def decoder(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(0)
    return decoders()[request.param]


def test_a_kernel_is_the_banks_mixture_modulated_and_demodulated() -> None:
    torch.manual_seed(0)
    layer = AdaptiveConv2d(5, 3, 4, 6).double()
    x, code = torch.randn(3, 4, 7, 5, dtype=torch.float64), torch.randn(3, 5, 2, 3, dtype=torch.float64)
    nn.init.normal_(layer.bias)
    for image, vectors, out in zip(x, code, layer(x, code), strict=True):
        z = vectors.mean((1, 2))
        choice = torch.softmax(layer.select.weight @ z + layer.select.bias, 0)
        kernel = sum(share * each for share, each in zip(choice, layer.weight, strict=True))
        kernel = kernel * (layer.scale.weight @ z + layer.scale.bias)[None, :, None, None]
        kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(out, F.conv2d(image[None], kernel, layer.bias, padding=1)[0])


def test_codes_choose_among_kernels() -> None:
    layer = AdaptiveConv2d(2, 2, 4, 4)
    with torch.no_grad():
        layer.select.weight.copy_(torch.tensor([[99.0, 0.0], [0.0, 99.0]]))
        layer.select.bias.zero_()
        layer.scale.weight.zero_()
        x, code = torch.randn(1, 4, 6, 6).expand(2, -1, -1, -1), torch.eye(2)[..., None, None]
        for image, kernel in zip(layer(x, code), layer.weight, strict=True):
            kernel = kernel / kernel.flatten(1).norm(dim=1)[:, None, None, None]
            torch.testing.assert_close(image, F.conv2d(x[:1], kernel, padding=1)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_convolution_takes_any_batch(dtype: torch.dtype) -> None:
    layer = AdaptiveConv2d(5, 3, 4, 6).to(dtype)
    given = [(torch.randn(n, 4, 6, 6, dtype=dtype), torch.randn(n, 5, 3, 3, dtype=dtype)) for n in (2, 1, 5)]
    dims = {0: torch.export.Dim.AUTO}
    with torch.no_grad():
        module = torch.export.export(layer, given[0], dynamic_shapes=(dims, dims)).module()
        for arguments in given:
            out = module(*arguments)
            assert out.dtype == dtype
            torch.testing.assert_close(out, layer(*arguments), atol=1e-5 if dtype == torch.float32 else 3e-2, rtol=1e-2)


def test_an_image_does_not_depend_on_its_batch(decoder: Decoder) -> None:
    features = torch.randn(3, 4, 4, 4)
    decoder.eval()  # Emu3's has batch norms
    with torch.no_grad():
        alone = torch.cat([decoder(each[None]) for each in features])
        torch.testing.assert_close(decoder(features), alone, atol=1e-5, rtol=1e-4)


def test_every_parameter_has_a_gradient(decoder: Decoder) -> None:
    optimizer, features = torch.optim.SGD(decoder.parameters(), 0.1), torch.randn(3, 4, 4, 4)
    target = torch.rand(decoder(features).shape)
    for _ in range(2):  # layers behind a zero, such as those of the overlapping stage, from the second step on
        optimizer.zero_grad()
        (decoder(features) - target).square().mean().backward()
        optimizer.step()
    without = [name for name, each in decoder.named_parameters() if each.grad is None or not each.grad.any()]
    # The bias of a key shifts all scores of a softmax alike, and one time step's convolutions see padding.
    assert not [name for name in without if ".k." not in name]
    assert all(each.grad.isfinite().all() for each in decoder.parameters() if each.grad is not None)


def test_bf16_autocast_is_near_float32(decoder: Decoder) -> None:
    features = torch.randn(2, 4, 4, 4)
    wanted = decoder(features)
    with torch.autocast("cpu", torch.bfloat16):
        half = decoder(features)
    half.float().square().mean().backward()
    error = (half - wanted).square().mean() / wanted.var()
    assert error < 1e-3 and all(each.grad.isfinite().all() for each in decoder.parameters() if each.grad is not None)
    whole = decoder.bfloat16()(features.bfloat16())
    assert whole.dtype == torch.bfloat16 and (whole - wanted).square().mean() / wanted.var() < 1e-2


def test_compiled_gradients_are_eager_ones() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.attention = AdaptiveConv2d(4, 2, 4, 4), Attention(4, 2, 2, score="l2")

        def forward(self, x: Tensor, code: Tensor) -> Tensor:
            return self.attention(self.convolution(x, code))

    parts, x, code = Parts(), torch.randn(2, 4, 4, 4), torch.randn(2, 4, 2, 2)
    torch.compiler.reset()
    grads = [
        torch.autograd.grad(run(x, code).square().mean(), list(parts.parameters()))
        for run in (parts, torch.compile(parts, fullgraph=True, backend="aot_eager"))
    ]
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(eager, compiled, atol=1e-6, rtol=1e-4)


def attended(attention: Attention, h: Tensor) -> Tensor:
    """L2 attention by its formula, one head and position after the other."""
    _, channels, height, width = h.shape
    size = channels // attention.heads
    values = attention.v.weight[:, :, 0, 0].unflatten(0, (attention.heads, size))
    queries = (attention.q.weight[:, :, 0, 0] @ h[0].flatten(1)).unflatten(0, (attention.heads, size))
    heads = []
    for x, value in zip(queries, values, strict=True):  # (size, N)
        scores = -(x[:, :, None] - x[:, None]).square().sum(0) / math.sqrt(size)
        heads.append(value @ (x @ torch.softmax(scores, dim=1).T))
    out = torch.cat(heads) + attention.v.bias[:, None]
    return (attention.out.weight[:, :, 0, 0] @ out + attention.out.bias[:, None]).view(1, channels, height, width)


@pytest.mark.parametrize("heads", [1, 2])
def test_l2_attention_by_its_formula_and_under_its_bound(heads: int) -> None:
    torch.manual_seed(0)
    attention = Attention(8, 4, heads, score="l2").double()
    for scale in (0.1, 1.0, 10.0):
        h = scale * torch.randn(1, 8, 3, 4, dtype=torch.float64)
        torch.testing.assert_close(attention.attend(h), attended(attention, h))
        jacobian = torch.autograd.functional.jacobian(attention.attend, h).reshape(96, 96)
        norms = [layer.weight[:, :, 0, 0].unflatten(0, (heads, -1)) for layer in (attention.q, attention.v)]
        both = [torch.linalg.matrix_norm(each, 2) for each in norms]
        out = torch.linalg.matrix_norm(attention.out.weight[:, :, 0, 0], 2)
        # Kim et al., theorem 3.2, for 12 positions
        bound = math.sqrt(12) * (4 * lambert(11 / math.e) + 1) * (both[0] * both[1]).norm() * out
        assert 0 < torch.linalg.matrix_norm(jacobian, 2) <= bound


def test_the_overlapping_stage_begins_as_the_identity_and_sees_across_borders() -> None:
    torch.manual_seed(0)
    plain, decoder = VitDecoder(**VIT), VitDecoder(**VIT, overlap=2, overlap_width=8)
    renamed = {name.replace("head.", "patches.") if name.startswith("head.") else name: value
               for name, value in plain.state_dict().items()}  # fmt: skip
    missing, surplus = decoder.load_state_dict(renamed, strict=False)
    assert not surplus and {name.split(".")[0] for name in missing} == {"overlap", "head"}
    features = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(decoder(features), plain(features), atol=1e-6, rtol=1e-6)

    nn.init.normal_(decoder.head.weight)
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    decoder.head(decoder.overlap(image))[0, :, 8, 8].sum().backward()  # the first pixel of a patch
    seen = image.grad[0].abs().sum(0).nonzero()
    assert seen.min(0).values.tolist() == [6, 6] and seen.max(0).values.tolist() == [10, 10]


@pytest.mark.parametrize(
    ("preset", "field"),
    [("vqgan-tiny-64", "kernels=2"), ("vqgan-tiny-64", "attention_score=l2"), ("vit-vqgan-tiny-64", "overlap=2")],
)
def test_they_are_off_unless_given_and_change_no_code(preset: str, field: str) -> None:
    plain, other = tvq.create(preset), tvq.create(preset, [f"decoder.{field}"])
    assert set(other.config.decoder.to_dict(defaults=False)) == {
        *plain.config.decoder.to_dict(defaults=False),
        field.split("=")[0],
    }
    coding = {name: value for name, value in plain.state_dict().items() if not name.startswith("decoder.")}
    other.load_state_dict(coding, strict=False)
    assert other.fingerprint == plain.fingerprint
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.equal(other.encode(images), plain.encode(images))


@pytest.mark.parametrize(
    ("preset", "field", "message"),
    [
        ("vqgan-tiny-64", "kernels=0", r"decoder\.kernels: input should be greater than or equal to 1, got 0"),
        ("vqgan-tiny-64", "attention_score=cosine", r"decoder\.attention_score: .*'dot' or 'l2', got 'cosine'"),
        ("vit-vqgan-tiny-64", "overlap=-1", r"decoder\.overlap: .*greater than or equal to 0, got -1"),
    ],
)
def test_wrong_values_are_one_line(preset: str, field: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tvq.create(preset, [f"decoder.{field}"])
