"""Filling in: pixels of a picture that are masked are drawn anew, from the codes of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prior.decoding import decode
from prior.model import Prior
from prior.sampling import Sampler
from tokenizers_vq import images
from tokenizers_vq.masking import check_mask
from tokenizers_vq.pixels import Source
from tokenizers_vq.resizing import resize_center_crop
from tokenizers_vq.tokenizer import Tokenizer


class Inpainted(NamedTuple):
    """What filling in gives."""

    images: Tensor
    """float32 `(n, C, H, W)` in [-1, 1]"""
    codes: Tensor
    """int64 `(n, N)`"""
    drawn: Tensor
    """bool `(N,)`: the codes that were drawn anew"""


def known_codes(prior: Prior, tokenizer: Tokenizer, image: Tensor, mask: Tensor, ring: int | None = None) -> Tensor:
    """int64 `(1, N)`: codes of `image` `(1, C, H, W)`, -1 for those that `mask` bool `(H, W)` touches.

    `ring`: as of `Tokenizer.mask_codes`. Raises `ValueError` for a mask of another size or type, for one that touches
    nothing, and for a picture whose codes are not those that the prior models.
    """
    check_mask(mask)
    if image.ndim != 4 or image.shape[0] != 1 or tuple(image.shape[-2:]) != tuple(mask.shape):
        raise ValueError(f"one picture (1, C, H, W) and its mask are of one size, got {image.shape} and {mask.shape}")
    grids, wanted = tokenizer.code_layout(*mask.shape).grids, prior.layout.grids
    if grids != wanted:
        size = "x".join(map(str, tokenizer.config.size))
        raise ValueError(
            f"a picture of {'x'.join(map(str, mask.shape))} pixels has codes on {list(map(list, grids))}, the prior "
            f"models {list(map(list, wanted))}: give it in the size that they were made of, by default {size}"
        )
    touched = tokenizer.mask_codes(mask.to(tokenizer.device), ring)
    parts = touched if isinstance(touched, tuple) else (touched,)
    flat = prior.layout.flatten(tuple(part[None].long() for part in parts) if len(parts) > 1 else parts[0][None].long())
    if not flat.any():
        raise ValueError("the mask touches no pixel: make it True (white) where the picture is to be drawn anew")
    codes = prior.layout.flatten(tokenizer.encode(image.to(tokenizer.device)))
    return codes.masked_fill(flat.bool(), -1)


def read_masked(
    image: Source,
    mask: Source,
    size: tuple[int, int],
    channels: int,
    max_pixels: int = images.MAX_PIXELS,
    names: tuple[str | None, str | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """A picture `(1, C, H, W)` and its mask bool `(H, W)`, white where it is True, in the tokenizer's size.

    `names`: what errors call them. Raises `ValueError` where they are not of one size: cut and resized alike they have
    to stay beside each other.
    """
    read = [
        images.decode(one, many, name, max_pixels=max_pixels)
        for one, many, name in zip((image, mask), (channels, 1), names, strict=True)
    ]
    if read[0].shape[1:] != read[1].shape[1:]:
        sizes = [f"{one.shape[2]}x{one.shape[1]}" for one in read]
        of = [name or str(one) for name, one in zip(names, (image, mask), strict=True)]
        raise ValueError(f"{of[1]} is {sizes[1]} pixels, {of[0]} {sizes[0]}: a mask has the size of its picture")
    seen = [resize_center_crop(one, size) for one in read]
    picture, white = (one if one.is_floating_point() else images.from_uint8(one) for one in seen)
    return picture[None], white[0] > -0.5  # a pixel that holds any white counts, once it is resized


def inpaint(
    prior: Prior,
    tokenizer: Tokenizer,
    image: Tensor,
    mask: Tensor,
    n: int = 1,
    condition: Any = None,
    sampler: Sampler | Mapping[str, Any] | None = None,
    *,
    ring: int | None = None,
    keep_pixels: bool = False,
    first: int = 0,
    **settings: Any,
) -> Inpainted:
    """Draw the pixels of `image` `(1, C, H, W)` that `mask` bool `(H, W)` marks, `n` times.

    Codes that the mask touches are drawn given the others: by a masked prior given all of them, by an autoregressive
    one each given those before it alone, so that what it draws does not know what follows. `keep_pixels`: outside the
    mask the picture's own pixels, where the tokenizer's rendering of them would stand otherwise. `condition`,
    `sampler`, `first`, `settings`: as of `Prior.sample`; `ring`: as of `Tokenizer.mask_codes`. Raises `ValueError` as
    these and `known_codes` do.

        inpaint(prior.load("..."), tvq.load("..."), tvq.images.read("cat.png", size=64), mask, n=4, keep_pixels=True)
    """
    known = known_codes(prior, tokenizer, image, mask, ring)
    codes = prior.sample(n, condition, sampler, known, first, **settings)
    drawn = decode(tokenizer, prior, codes)
    if keep_pixels:
        drawn = torch.where(mask.cpu(), drawn, image.float().cpu().clamp(-1, 1))
    return Inpainted(drawn, codes, known[0] < 0)
