"""MaskBit beyond law 11: what it reads, what it masks, which tokenizers it takes; trained on a tokenizer's codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenizers_vq as tvq
from prior.conditions import NoneConfig
from prior.model import Prior, PriorConfig
from prior.networks.maskbit import MaskBit, MaskBitConfig
from prior.sequences import LayoutConfig
from tests.laws.priors import by_name, rows
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.quantizers.bsq import BsqQuantizerConfig
from tokenizers_vq.quantizers.fsq import FsqQuantizerConfig
from tokenizers_vq.quantizers.lfq import LfqQuantizerConfig


def build(bits: int, groups: int, book: object = None) -> Prior:
    layout = LayoutConfig(grids=((2, 2),), levels=1, sizes=(2**bits,))
    network = MaskBitConfig(layers=1, dim=16, heads=1, groups=groups)
    return Prior(PriorConfig(network=network, layout=layout, book=book or LfqQuantizerConfig(bits=bits))).eval()


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups_of_bits_are_parts_of_codes(groups: int) -> None:
    network = build(6, groups).network
    assert isinstance(network, MaskBit)
    codes = torch.randint(0, 64, (5, 4))
    parts = network.split(codes)
    assert parts.shape == (5, 4 * groups) and int(parts.max()) < 2 ** (6 // groups)
    assert torch.equal(network.join(parts), codes)
    assert torch.equal(parts.unflatten(1, (4, groups))[..., 0], codes % 2 ** (6 // groups))  # the lowest bits
    masked = network.split(codes.masked_fill(torch.arange(4) == 1, -1)).unflatten(1, (4, groups))
    assert bool((masked[:, 1] == -1).all()) and bool((masked[:, [0, 2, 3]] >= 0).all())


def test_masked_groups_are_read_as_zeros_and_others_as_signs() -> None:
    model = build(4, 2)
    network = model.network
    seen: list[Tensor] = []
    network.bits.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    with torch.no_grad():
        network.part_logits(torch.tensor([[2, -1, -1, 3, -1, -1, 0, 1]]), model.context(None, 1))
    wanted = [[-1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [-1, -1, 1, -1]]
    assert seen[0][0].tolist() == wanted


def test_logits_of_codes_are_sums_over_their_groups() -> None:
    model = by_name("maskbit, bits").spread()
    tokens = torch.where(torch.rand(3, 12) < 0.5, rows(model.layout, 3), -1)
    network, context = model.network, model.context(None, 3)
    with torch.no_grad():
        logits = model.logits(tokens)
        logp = network.part_logits(network.split(tokens), context).log_softmax(dim=-1).unflatten(1, (12, 2))
    for code in range(16):
        torch.testing.assert_close(logits[..., code], logp[:, :, 0, code % 4] + logp[:, :, 1, code // 4])
    torch.testing.assert_close(logits.exp().sum(dim=-1), torch.ones(3, 12))


def test_groups_of_one_code_are_masked_and_drawn_each_by_itself() -> None:
    model = by_name("maskbit, bits").spread()
    seen: list[Tensor] = []
    hook = model.network.bits.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    model(rows(model.layout, 8))  # a loss
    model.sample(8, steps=5)
    hook.remove()
    for given in seen[:1] + seen[2:]:
        zeros = (given == 0).unflatten(2, (2, 2)).all(dim=3)
        assert bool((zeros[..., 0] != zeros[..., 1]).any())  # half a code is known somewhere


def test_the_tokenizers_that_it_takes() -> None:
    for book in (LfqQuantizerConfig(bits=4), BsqQuantizerConfig(bits=4)):
        assert build(4, 2, book).sample(2).shape == (2, 4)
    with pytest.raises(ValueError, match="codes do not consist of bits"):
        build(4, 2, FsqQuantizerConfig(levels=(4, 4)))
    with pytest.raises(ValueError, match="3 groups do not divide the 4 bits of a code"):
        build(4, 3)
    with pytest.raises(ValueError, match="needs the tokenizer's quantizer"):
        network = MaskBitConfig(layers=1, dim=16, heads=1)
        PriorConfig(network=network, condition=NoneConfig(), layout=LayoutConfig.of(CodeLayout(((2,),), 1, (4,))))
    quantizers = {
        "lfq-tiny-64": True,
        "fsq-tiny-64": False,
        "vqgan-tiny-64": False,
        "rqvae-tiny-64": False,
    }
    for preset, signs in quantizers.items():
        with torch.device("meta"):
            quantizer = tvq.create(preset).quantizer
        assert (quantizer.sign_bits is not None) == signs, preset
