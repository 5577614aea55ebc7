"""A picture through every tokenizer, beside JPEG, WebP and AVIF of as many bits: `tvq compare` on this one picture."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image
from torch import Tensor

from tokenizers_vq.app import pictures
from tokenizers_vq.app.models import Models
from tokenizers_vq.codes import Codes
from tokenizers_vq.evaluation import Comparison, compare
from tokenizers_vq.evaluation.codecs import QUALITIES, PillowCodec, TokenizerCodec, nearest_quality, pillow_codecs
from tokenizers_vq.evaluation.compare_page import nearest

ORIGINAL = "original"
LARGEST = 512
"""pixels a side that the page offers, but for tokenizers that are made for larger ones"""
_ALIKE = 1.25
"""bits whose ratio is below this are as good as equal"""


class View(NamedTuple):
    """One of the pictures that stand beside each other."""

    name: str
    caption: str
    """its name, bits and distortion"""
    picture: Image.Image


class Seen(NamedTuple):
    """What one tokenizer makes of a picture."""

    image: Tensor
    """float32 `(1, C, H, W)` in [-1, 1]"""
    codes: Codes
    decoded: Tensor
    """float32 `(1, C, H, W)` in [-1, 1], on the CPU"""


class Look(NamedTuple):
    """What is known of one picture."""

    views: list[View]
    """the original, then each tokenizer, followed by the files nearest in bits"""
    seen: dict[str, Seen]
    """by tokenizer"""
    notes: list[str]
    """what must be known to compare them"""

    def view(self, name: str | None) -> View:
        """A picture by its name; the original where there is none of it."""
        return next((view for view in self.views if view.name == name), self.views[0])


def sizes(models: Models) -> list[int]:
    """Sides that pictures can be looked at, rising: each tokenizer's own, twice and four times that, up to `LARGEST`.

    A tokenizer's own size is there however large it is.
    """
    found: set[int] = set()
    for codec in models.tokenizers.values():
        own = max(codec.tokenizer.config.size)
        found |= {side for side in (own, 2 * own, 4 * own) if side == own or side <= LARGEST}
    return sorted(side for side in found if any(_takes(codec, side) for codec in models.tokenizers.values()))


def look(path: str | None, models: Models, size: int) -> Look:
    """What every tokenizer makes of a picture file at `size` pixels a side. Raises `ValueError` as `pictures.read`.

    Tokenizers that cannot take this size, or images of other channels than the first, are left out with a note.
    """
    codecs, notes = _fitting(models, size)
    image = pictures.read(path, codecs[0].channels, size)
    files, without = _files(codecs, image)
    batch = {"images": image, "keys": ["picture"]}
    found = compare([*codecs, *files], [batch], backbone=None, left_out=without, examples=1)
    views = _views(found)
    coded = [codec.encode(image) for codec in codecs]
    seen = {
        codec.name: Seen(image, made[0], codec.decode(made).cpu()) for codec, made in zip(codecs, coded, strict=True)
    }
    notes += _unequal(found) + [f"Left out {name}: {reason}." for name, reason in found.left_out.items()] + found.notes
    return Look(views, seen, notes)


def _takes(codec: TokenizerCodec, size: int) -> bool:
    try:
        codec.layout(size, size)
    except ValueError:
        return False
    return True


def _fitting(models: Models, size: int) -> tuple[list[TokenizerCodec], list[str]]:
    """The tokenizers that can stand beside each other, and a note for each that cannot."""
    able = [codec for codec in models.tokenizers.values() if _takes(codec, size)]
    if not able:
        raise ValueError(f"no tokenizer here takes pictures of {size} x {size} pixels: choose another size")
    fitting, notes = [], []
    for codec in models.tokenizers.values():
        if codec not in able:
            notes.append(f"Left out {codec.name}: it does not take pictures of {size} x {size} pixels.")
        elif codec.channels != able[0].channels:
            notes.append(f"Left out {codec.name}: it takes images of {codec.channels} channels.")
        else:
            fitting.append(codec)
    return fitting, notes


def _files(codecs: list[TokenizerCodec], image: Tensor) -> tuple[list[PillowCodec], dict[str, str]]:
    """Image codecs at the qualities whose files are nearest to the codes in bits."""
    _, without = pillow_codecs(channels=codecs[0].channels)
    able, _ = pillow_codecs(dict.fromkeys(QUALITIES, (50,)), codecs[0].channels)
    bits = {codec.layout(*image.shape[-2:]).bits for codec in codecs}
    qualities = {one.format: sorted({nearest_quality(one.format, image, each) for each in bits}) for one in able}
    return pillow_codecs(qualities, codecs[0].channels)[0], without


def _views(found: Comparison) -> list[View]:
    example = found.examples[0]
    views = {ORIGINAL: View(ORIGINAL, "The original", pictures.opened(example.original.data))}
    for own, others in nearest(found, example).items():
        for index in (own, *others):
            name, shown = found.rows[index].name, example.rows[index]
            caption = f"{name}: {shown.bits_per_pixel:.2f} bits/pixel, {shown.psnr:.1f} dB"
            views.setdefault(name, View(name, caption, pictures.opened(shown.data)))
    return list(views.values())


def _unequal(found: Comparison) -> list[str]:
    """A note for each file that has far more bits, or far fewer, than the codes that it stands beside."""
    example, notes = found.examples[0], []
    for own, others in nearest(found, example).items():
        for other in others:
            ratio = (example.rows[other].bits_per_pixel or 0) / (example.rows[own].bits_per_pixel or 1)
            if not 1 / _ALIKE < ratio < _ALIKE:
                notes.append(
                    f"{found.rows[other].name} takes {ratio:.1f} times the bits of {found.rows[own].name}: no file of "
                    f"{found.rows[other].family} comes nearer."
                )
    return notes
