"""TiTok: one image size, the decoder of two stages, and the published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tokenizers_vq as tvq
from tests.networks.test_maskgit import decoder_parameters, parameters
from tokenizers_vq.networks.maskgit import MaskgitDecoder
from tokenizers_vq.networks.titok import TitokDecoder, TitokEncoder, TitokProxyDecoder
from tokenizers_vq.tokenizer import Tokenizer

TRUNK = {"tokens": 5, "patch": 4, "width": 16, "layers": 2, "heads": 2}
PROXY = {"width": 8, "multipliers": (1, 1, 2), "blocks": 1, "groups": 4}
SIZE = (16, 24)


def proxy_decoder(stage: str, **fields: object) -> TitokProxyDecoder:
    fields = {"proxy_codes": 12, "proxy_dim": 6, "proxy": PROXY, "stage": stage, **fields}
    return TitokProxyDecoder(dim=3, image_size=SIZE, **TRUNK, **fields)


def trunk(width: int, layers: int, tokens: int) -> int:
    """A transformer of 16x16 patches: its tokens' positions, norms and blocks."""
    return width * (1 + 257 + tokens) + 4 * width + layers * (12 * width**2 + 13 * width)


SIZES = {"s": (512, 8), "b": (768, 12), "l": (1024, 24)}


@pytest.mark.parametrize(
    ("preset", "encoder", "decoder", "tokens", "total"),
    [
        ("titok-l32", "l", "l", 32, 641_054_735),
        ("titok-b64", "b", "b", 64, 204_814_095),
        ("titok-s128", "s", "s", 128, 83_674_639),
        ("titok-bl64", "b", "l", 64, 390_016_148),
        ("titok-bl128", "b", "l", 128, 390_179_988),
        ("titok-sl256", "s", "l", 256, 330_260_884),
    ],
)
def test_the_published_sizes_parameters_are_the_references(
    preset: str, encoder: str, decoder: str, tokens: int, total: int
) -> None:
    # By arithmetic from the class TiTok of bytedance/1d-tokenizer at 10113ad, modeling/titok.py and
    # modeling/modules/blocks.py, at configs/infer/*.yaml; recorded cases of other sizes hold the class itself.
    two_stage = encoder == decoder
    codes, dim = (4096, 12) if two_stage else (8192, 64)
    (width, layers), (inner, depth) = SIZES[encoder], SIZES[decoder]
    count = width * (3 * 16**2 + 1) + tokens * width + trunk(width, layers, tokens) + (width + 1) * dim
    count += codes * dim + (dim + 1) * inner + inner + trunk(inner, depth, tokens)
    if two_stage:
        count += (inner + 1) * 2 * inner + (2 * inner + 1) * 1024 + 1024 * 256 + decoder_parameters()
    else:
        count += (inner + 1) * 3 * 16**2 + 3 * 3 * 9 + 3
    with torch.device("meta"):
        tokenizer = tvq.create(preset)
    assert parameters(tokenizer) == count == total
    assert tokenizer.code_layout().grids == ((tokens,),) and tokenizer.code_layout().sizes == (codes,)


def test_only_its_own_size_is_taken_and_only_its_own_number_of_codes() -> None:
    encoder = TitokEncoder(dim=3, channels=5, image_size=SIZE, **TRUNK)
    decoder = TitokDecoder(dim=3, channels=5, image_size=SIZE, **TRUNK)
    with torch.no_grad():
        features = encoder(torch.randn(2, 5, *SIZE))
        assert features.shape == (2, 3, 5) and encoder.grid(*SIZE) == (5,)
        assert decoder(features).shape == (2, 5, *SIZE)
    for size in ((24, 16), (32, 48)):
        with pytest.raises(
            ValueError, match=r"5 codes stand for images of 16x24, got \d+x\d+: resize or crop to 16x24"
        ):
            encoder.grid(*size)
    with pytest.raises(ValueError, match=r"an image has 5 codes here, got \(7,\)"):
        decoder(torch.randn(1, 3, 7))
    with pytest.raises(ValueError, match="16x24 is not divisible by the stride 5"):
        TitokEncoder(dim=3, image_size=SIZE, **{**TRUNK, "patch": 5})
    with pytest.raises(ValueError, match="3 heads do not divide the width 16"):
        TitokEncoder(dim=3, image_size=SIZE, **{**TRUNK, "heads": 3})


def test_the_published_reshape_mixes_tokens_and_the_right_one_does_not() -> None:
    right = TitokEncoder(dim=16, image_size=SIZE, **TRUNK).eval()
    mixed = TitokEncoder(dim=16, image_size=SIZE, legacy_reshape=True, **TRUNK).eval()
    nn.init.eye_(right.quant_conv.weight)
    mixed.load_state_dict(right.state_dict())
    images = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        plain, legacy = right(images)[0], mixed(images)[0]
    assert torch.allclose(legacy, plain.T.reshape(16, 5), atol=1e-5) and not torch.allclose(legacy, plain, atol=1e-2)


def test_both_stages_give_the_same_images_and_train_what_they_say() -> None:
    codes, pixels = proxy_decoder("codes"), proxy_decoder("pixels")
    pixels.load_state_dict(codes.state_dict())
    features = torch.randn(2, 3, 5)
    output, images = codes(features), pixels(features)
    assert output.shape == (2, 12, 4, 6) and images.shape == (2, 3, *SIZE)
    assert torch.allclose(codes.render(output), images, atol=1e-6) and pixels.render(images) is images
    output.square().mean().backward()
    images.square().mean().backward()
    frozen = {name for name, parameter in codes.named_parameters() if parameter.grad is None}
    assert frozen == {name for name, _ in codes.named_parameters() if name.startswith(("codebook", "proxy."))}
    assert all(parameter.grad is not None for parameter in pixels.parameters())
    assert codes.head is codes.logits and pixels.head is pixels.proxy.head


def test_certain_logits_decode_as_the_proxy_decodes_those_codes() -> None:
    decoder = proxy_decoder("codes").eval()
    codes = torch.randint(12, (2, 4, 6))
    logits = 1e4 * nn.functional.one_hot(codes, 12).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = decoder.proxy(decoder.codebook[codes].permute(0, 3, 1, 2))
        assert torch.allclose(decoder.render(logits), expected, atol=1e-5)


def test_a_trained_proxy_is_adopted_whole_or_not_at_all() -> None:
    decoder, theirs = proxy_decoder("codes"), MaskgitDecoder(dim=6, **PROXY)
    book = torch.randn(12, 6)
    decoder.adopt(book, theirs)
    assert torch.equal(decoder.codebook, book) and not decoder.codebook.requires_grad
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in decoder.proxy.state_dict().items())
    with pytest.raises(ValueError, match=r"give decoder\.proxy_codes=9 and decoder\.proxy_dim=6"):
        decoder.adopt(torch.zeros(9, 6), theirs)
    with pytest.raises(ValueError, match="does not fit the decoder to adopt, first at"):
        decoder.adopt(torch.zeros(12, 6), MaskgitDecoder(dim=6, **{**PROXY, "blocks": 2}))
    assert torch.equal(decoder.codebook, book)


def test_every_parameter_of_both_forms_gets_a_gradient() -> None:
    for decoder in (
        "{kind: titok, patch: 4}",
        "{kind: titok_proxy, patch: 4, proxy: {width: 32, multipliers: [1, 1, 1]}}",
    ):
        small = {"decoder": decoder, "encoder": "{kind: titok, patch: 4}"}
        overrides = [f"{part}={value}" for part, value in small.items()]
        overrides += [
            f"{part}.{field}={TRUNK[field]}" for part in small for field in ("tokens", "width", "layers", "heads")
        ]
        tokenizer: Tokenizer = tvq.create("titok-tiny-64", [*overrides, "image_size=16", "quantizer.num_codes=8"])
        out = tokenizer.train()(torch.rand(2, 3, 16, 16) * 2 - 1)
        (out.output.square().mean() + sum(out.quantized.losses.values())).backward()
        trained = [(name, p) for name, p in tokenizer.named_parameters() if p.requires_grad]
        assert not [name for name, parameter in trained if parameter.grad is None]


def test_configs_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"output: of a titok_proxy decoder is pixels"):
        proxy_decoder("codes", output="logit_laplace")
    with pytest.raises(ValueError, match=r"proxy\.output: a titok_proxy decoder needs a proxy that gives pixels"):
        proxy_decoder("codes", proxy={**PROXY, "output": "logit_laplace"})
