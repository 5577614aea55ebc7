"""New pictures, and pictures filled in, by a prior: `tvq-prior sample` and `inpaint` of what the page is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prior import inpainting
from prior.cli.opening import Opened
from prior.conditions.classes import ClassCondition
from prior.decoding import decode
from prior.model import Prior
from prior.sampling import Sampler
from tokenizers_vq.app import pictures

MOST = 16
"""pictures at a time"""


class Wish(NamedTuple):
    """How pictures are drawn."""

    pictures: int = 4
    seed: int = 0
    temperature: float = 1.0
    guidance: float = 1.0
    top_p: float = 1.0

    def sampler(self, opened: Opened) -> Sampler:
        """The sampler of a prior. Raises `ValueError` for settings that it does not have."""
        plain = Sampler(
            temperature=self.temperature,
            guidance=self.guidance,
            top_p=self.top_p if self.top_p < 1 else None,
            seed=int(self.seed or 0),
        )
        return opened.sampler(plain, ())


def choices(part: Any) -> list[str] | None:
    """What a condition is chosen from: names of classes, else their numbers; None where it is written."""
    if not isinstance(part, ClassCondition):
        return None
    return list(part.label_names) or [str(number) for number in range(part.num_classes)]


def usual_guidance(opened: Opened) -> float:
    """Guidance to begin with: some where a prior has learnt what it compares with, none elsewhere."""
    return 3.0 if any(part.guidable for part in opened.condition.parts.values()) else 1.0


def told(opened: Opened, given: Mapping[str, str | None]) -> dict[str, Any] | None:
    """What a person gives, by the names of the conditions, as a prior is told it; None for nothing.

    Raises `ValueError` for what it cannot be told.
    """
    found = {}
    for name, part in opened.condition.parts.items():
        text = (given.get(name) or "").strip()
        if text:
            found[name] = part.read(text)[0]
    return found or None


def sample(opened: Opened, given: Mapping[str, str | None], wish: Wish) -> list[Tensor]:
    """New pictures `(C, H, W)` in [-1, 1]. Raises `ValueError` as `Prior.sample` does."""
    count = _checked(wish)
    codes = opened.prior.sample(count, told(opened, given), wish.sampler(opened))
    return list(decode(opened.tokenizer, opened.prior, codes))


def fills(opened: Opened) -> bool:
    """Whether a prior can fill in: it models all codes of a picture, each of which has a place in it."""
    return isinstance(opened.prior, Prior) and all(len(grid) == 2 for grid in opened.prior.layout.grids)


def fill(
    opened: Opened, path: str | None, mask: np.ndarray | None, given: Mapping[str, str | None], wish: Wish
) -> list[Tensor]:
    """A picture's file with what a mask covers drawn anew: pictures `(C, H, W)` in [-1, 1], elsewhere its own pixels.

    `mask`: bool `(h, w)`, of the picture as `prepare` gives it, at any resolution. Raises `ValueError` as `prepare` and
    `inpainting.inpaint` do, and where nothing is painted.
    """
    image, prior, size = prepare(path, opened), opened.prior, opened.tokenizer.config.size
    if mask is None or not mask.any():
        raise ValueError("nothing is painted yet: paint over what is to be drawn anew")
    assert isinstance(prior, Prior)
    marked = F.adaptive_max_pool2d(torch.from_numpy(mask)[None].float(), size)[0] > 0  # a pixel that holds any paint
    count, what = _checked(wish), told(opened, given)
    made = inpainting.inpaint(
        prior, opened.tokenizer, image, marked, count, what, wish.sampler(opened), keep_pixels=True
    )
    return list(made.images)


def prepare(path: str | None, opened: Opened) -> Tensor:
    """A picture file as a prior's tokenizer takes it, `(1, C, H, W)`. Raises `ValueError` as `pictures.read`."""
    return pictures.read(path, opened.tokenizer.config.channels, opened.tokenizer.config.size)


def remarks(opened: Opened) -> list[str]:
    """What must be known of a prior that is to fill in."""
    if isinstance(opened.prior, Prior) and not opened.prior.network.masked:
        return [
            "This prior draws codes in order, each given those before it alone: what it draws does not know what lies "
            "below. A masked prior (MaskGIT) would."
        ]
    return []


def _checked(wish: Wish) -> int:
    if not 1 <= wish.pictures <= MOST:
        raise ValueError(f"ask for 1 to {MOST} pictures")
    return int(wish.pictures)
