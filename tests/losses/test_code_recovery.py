"""Code recovery beyond its laws: nothing of the tokenizer changes, several grids, outside a tokenizer."""

from __future__ import annotations

import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.batch import Batch
from tokenizers_vq.losses.code_recovery import CodeRecoveryConfig
from tokenizers_vq.losses.record import Record


def record_of(tokenizer: tvq.Tokenizer, images: torch.Tensor) -> Record:
    with torch.no_grad():
        out = tokenizer(images, render=False)
    output = 0.9 * images.flip(0).sign()  # unlike enough for other codes, whatever the decoder gives
    return Record(Batch(images), output, features=out.features, quantized=out.quantized, tokenizer=tokenizer)


@pytest.mark.parametrize("target", ["features", "codes"])
@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("vqvae-tiny-64", ["encoder.width=8", "decoder.width=8"]),
        ("vqvae2-tiny-64", ["encoder.width=8", "encoder.block_width=4", "decoder.width=8", "decoder.block_width=4"]),
        ("fsq-tiny-64", ["encoder.width=8", "encoder.groups=4", "decoder.width=8", "decoder.groups=4"]),
    ],
)
def test_the_tokenizer_is_left_as_it_was(preset: str, overrides: list[str], target: str) -> None:
    torch.manual_seed(0)
    tokenizer = tvq.create(preset, ["image_size=32", *overrides]).train()
    record = record_of(tokenizer, torch.rand(2, 3, 32, 32) * 2 - 1)
    tokenizer.decoder.eval()  # as a part of it may be while the rest trains
    modes = [module.training for module in tokenizer.modules()]
    state = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    CodeRecoveryConfig(target=target).build()(record).backward()
    assert record.output.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tokenizer.parameters())
    assert all(torch.equal(value, state[name]) for name, value in tokenizer.state_dict().items())
    assert [module.training for module in tokenizer.modules()] == modes


def test_outside_a_tokenizer_there_is_nothing_to_encode_with() -> None:
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="there is no tokenizer"):
        CodeRecoveryConfig().build()(Record(images, images))
