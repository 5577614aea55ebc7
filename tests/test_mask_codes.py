"""Which codes a mask of pixels touches: shapes of every layout, the ring, and what leaks past it, by gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenizers_vq as tvq
from tests.laws.test_tokenizers import NARROW, ONE_SIZE, narrow, parts
from tests.test_hierarchical import make
from tokenizers_vq.tokenizer import Tokenizer


def box(
    height: int = 64, width: int = 64, rows: tuple[int, int] = (20, 41), columns: tuple[int, int] = (25, 44)
) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def test_codes_are_those_of_the_touched_cells_and_a_ring() -> None:
    tokenizer = narrow("vqgan-tiny-64")  # cells of 4 x 4
    mask = box()
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[5:11, 6:11] = True
    assert torch.equal(tokenizer.mask_codes(mask, ring=0), wanted)
    wanted[4:12, 5:12] = True
    assert torch.equal(tokenizer.mask_codes(mask), wanted)
    one = torch.zeros(64, 64, dtype=torch.bool)
    one[0, 63] = True
    assert tokenizer.mask_codes(one).nonzero().tolist() == [[0, 14], [0, 15], [1, 14], [1, 15]]
    assert not tokenizer.mask_codes(torch.zeros_like(one)).any()
    assert tokenizer.mask_codes(~torch.zeros_like(one), ring=0).all()
    assert tokenizer.mask_codes(box(32, 96)).shape == (8, 24)  # any size that the stride divides


@pytest.mark.parametrize("preset", sorted(set(NARROW) - ONE_SIZE))
def test_they_have_the_shape_of_codes(preset: str) -> None:
    tokenizer = narrow(preset)
    codes, touched = parts(tokenizer.encode(torch.zeros(1, 3, 64, 64))), parts(tokenizer.mask_codes(box()))
    assert [part.shape for part in touched] == [part.shape[1:] for part in codes]
    assert all(part.dtype == torch.bool and part.any() and not part.all() for part in touched)
    assert isinstance(tokenizer.mask_codes(box()), tuple) == (len(codes) > 1)


def test_levels_and_scales_go_with_their_place() -> None:
    levels = tvq.create("rqvae-tiny-64", ["encoder.width=32", "decoder.width=32"])
    touched = levels.mask_codes(box(), ring=0)
    layout = levels.code_layout()
    assert touched.shape == (*layout.grids[0], layout.levels) and bool((touched == touched[..., :1]).all())
    scales = tvq.create("var-tiny-64", ["encoder.width=32", "decoder.width=32"])
    found = scales.mask_codes(box(), ring=0)
    cells = found[-1].nonzero().float() + 0.5
    for part, grid in zip(found, scales.code_layout().grids, strict=True):
        assert part.shape == grid
        side = grid[0] / found[-1].shape[0]
        places = (cells * side).long()
        assert part[places[:, 0], places[:, 1]].all()  # what covers a touched cell of the finest grid
        assert bool(part.all()) == (grid[0] <= 2)  # the box lies over the centre
    coarse, fine = make(1, 2).mask_codes(box(32, 64, (8, 9), (8, 9)))
    assert coarse.nonzero().amax(dim=0).tolist() == [2, 2] and int(coarse.sum()) == 9
    assert fine.shape == (8, 16) and fine.nonzero().amin(dim=0).tolist() == [1, 1]


def leaks(tokenizer: Tokenizer, mask: Tensor) -> list[float]:
    """For the touched cells, the ring around them and all others: how much of the gradient lies on masked pixels."""
    images = (F.interpolate(torch.rand(1, 3, 16, 16), (64, 64), mode="bilinear") * 2 - 1).requires_grad_()
    features = tokenizer.encode_features(images)
    cells, ringed = tokenizer.mask_codes(mask, ring=0), tokenizer.mask_codes(mask, ring=1)
    weights, shares = torch.randn(features.shape), []
    for where in (cells, ringed & ~cells, ~ringed):
        total = torch.zeros(())
        for place in where.nonzero()[:: max(1, int(where.sum()) // 8)].tolist():  # eight of them
            target = (features * weights)[0, :, place[0], place[1]].sum()
            (gradient,) = torch.autograd.grad(target, images, retain_graph=True)
            total = total + (gradient * mask).square().sum() / gradient.square().sum() / 8
        shares.append(float(total))
    return shares


def test_what_leaks_into_kept_codes_of_a_vqgan_is_mostly_in_the_ring() -> None:
    torch.manual_seed(0)
    inside, ring, outside = leaks(narrow("vqgan-tiny-64"), box())
    assert inside > ring > 0.05  # without the ring, kept codes would show what is masked
    assert outside < ring / 3


def test_what_a_mask_means_where_attention_is_global() -> None:
    torch.manual_seed(0)
    inside, ring, outside = leaks(tvq.load("vit-vqgan-tiny-64"), box(rows=(20, 40), columns=(24, 44)))
    assert inside > 0.9 and ring < 0.05  # a code stands for its own patch ...
    assert 0 < outside < 0.05  # ... and depends on every other a little


class Patches(nn.Module):
    """An encoder that looks at one patch for each feature."""

    leaks = False

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 4, stride=4)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 4, width // 4

    def forward(self, pixels: Tensor) -> Tensor:
        return self.embed(pixels)


def test_an_encoder_that_does_not_leak_has_no_ring() -> None:
    like = narrow("vqgan-tiny-64")
    tokenizer = Tokenizer.from_parts(Patches(), like.quantizer, like.decoder, image_size=64)
    assert torch.equal(tokenizer.mask_codes(box()), tokenizer.mask_codes(box(), ring=0))
    assert leaks(tokenizer, box())[1:] == [0, 0]


def test_what_is_refused() -> None:
    tokenizer = narrow("vqgan-tiny-64")
    for mask, says in (
        (torch.zeros(64, 64), "must be bool .* got float32"),
        (torch.zeros(1, 64, 64, dtype=torch.bool), "must be bool .* got bool \\(1, 64, 64\\)"),
        ([[True]], "must be bool"),
        (torch.zeros(63, 64, dtype=torch.bool), "63"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            tokenizer.mask_codes(mask)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="ring must be 0 or more"):
        tokenizer.mask_codes(box(), ring=-1)
    with pytest.raises(ValueError, match="stand in a row"):
        narrow("titok-tiny-64").mask_codes(box(16, 24, (2, 3), (2, 3)))
