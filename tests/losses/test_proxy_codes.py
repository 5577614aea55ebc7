"""TiTok's first stage: the cross-entropy against another tokenizer's codes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.losses.proxy_codes import ProxyCodes
from tokenizers_vq.losses.record import Record

SMALL = [
    "image_size=16",
    *(
        f"{part}.{field}"
        for part in ("encoder", "decoder")
        for field in ("width=8", "multipliers=[1, 1, 2]", "blocks=1", "groups=4")
    ),
    "quantizer.num_codes=12",
    "quantizer.dim=6",
]
"""overrides that make `maskgit-f16-1024` small: 12 codes on 4x4 at 16 px"""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    tokenizer = tvq.create("maskgit-f16-1024", SMALL)
    torch.nn.init.normal_(tokenizer.quantizer.weight)
    folder = tmp_path_factory.mktemp("proxy")
    tokenizer.save_pretrained(folder)
    return folder


def record(output: torch.Tensor) -> Record:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Record(images, output)


def test_it_is_the_cross_entropy_of_the_output_against_the_proxys_codes(proxy: Path) -> None:
    term, given = ProxyCodes(tokenizer=str(proxy)), record(torch.randn(2, 12, 4, 4))
    codes = tvq.load(proxy).encode(given.images)
    assert len(codes.unique()) > 1
    shares = given.output.softmax(dim=1).gather(1, codes[:, None])
    loss = term(given)
    assert torch.allclose(loss, -shares.log().mean(), atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, given.output)
    assert gradient.shape == given.output.shape
    assert not any(parameter.requires_grad for parameter in term.parameters())


def test_its_codes_are_those_of_float32_under_autocast(proxy: Path) -> None:
    term, given = ProxyCodes(tokenizer=str(proxy)), record(torch.randn(2, 12, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        loss, codes = term(given), term.codes(given.images.bfloat16().float())
    assert loss.dtype == torch.float32
    assert torch.equal(codes, tvq.load(proxy).encode(given.images.bfloat16().float()))


@pytest.mark.parametrize("shape", [(3, 16, 16), (11, 4, 4), (12, 2, 2)])
def test_an_output_that_is_no_logits_of_these_codes_is_refused(proxy: Path, shape: tuple[int, ...]) -> None:
    message = r"12 codes on 4x4, but .*titok_proxy with stage=codes, proxy_codes=12 and patch=4 \(images of 16x16\)"
    with pytest.raises(ValueError, match=message):
        ProxyCodes(tokenizer=str(proxy))(record(torch.randn(2, *shape)))


def test_a_tokenizer_without_one_grid_of_codes_is_refused(tmp_path: Path) -> None:
    tvq.create("titok-tiny-64", ["encoder.layers=1", "decoder.layers=1"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no single grid of codes to predict"):
        ProxyCodes(tokenizer=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ProxyCodes(tokenizer="nowhere")
