"""Priors behind `tvq serve`: requests of one sampler are drawn together, each as `sample` would draw it alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from prior import inpainting
from prior.chain import Chain
from prior.decoding import decode, refuse_part, short
from prior.model import Draw, Prior
from prior.models import load
from prior.sampling import Sampler
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.pictures import open_picture
from tokenizers_vq.serving.drawing import Decoder, Drawn, Prepared
from tokenizers_vq.serving.schemas import Inpaint, Sample


def open_drawer(names: Sequence[str], encoder: BatchEncoder) -> PriorDrawer:
    """The prior, or a chain of several, over the codes of an encoder's tokenizer and on its device.

    Raises `ValueError` for priors of another tokenizer, and what `load` raises.
    """
    priors = [load(name).to(encoder.device) for name in names]
    for name, one in zip(names, priors, strict=True):
        if one.config.fingerprint != encoder.fingerprint:
            raise ValueError(
                f"{name} is of another tokenizer ({short(one.config.fingerprint)}) than {encoder.name or 'the model'} "
                f"({short(encoder.fingerprint)}): serve its own, {one.config.tokenizer}"
            )
    if len(priors) == 1:
        refuse_part(priors[0])
    prior = priors[0] if len(priors) == 1 else Chain(priors)
    (prior if isinstance(prior, Chain) else prior.condition).adopt(encoder.tokenizer)
    return PriorDrawer(prior, encoder, list(names))


class PriorDrawer:
    """A `serving.drawing.Drawer` of a prior or a chain of priors."""

    def __init__(self, prior: Prior | Chain, encoder: BatchEncoder, names: list[str]) -> None:
        self.prior, self.encoder, self.names = prior, encoder, names

    def about(self) -> dict[str, Any]:
        """Its names, and what it is told."""
        told = (self.prior if isinstance(self.prior, Chain) else self.prior.condition).parts
        return {"models": self.names, "told": list(told)}

    def prepare(self, ask: Sample | Inpaint, content: Decoder, max_pixels: int) -> Prepared:
        """Check sampler, pictures and condition. Raises `ValueError` of one line."""
        prior = self.prior
        sampler = Sampler(**ask.sampler) if isinstance(prior, Chain) else prior.sampler(None, ask.sampler)
        self._check_cost(sampler)

        def picture(text: str) -> Image:
            return open_picture(io.BytesIO(content(text, "condition")), "condition", max_pixels)[0]

        told = (prior if isinstance(prior, Chain) else prior.condition).received(ask.condition, picture)
        draw = Draw(ask.n, told, sampler.seed, ask.first)
        if isinstance(ask, Inpaint):
            return Prepared(object(), ask.n, self._inpainting(ask, draw, sampler, content, max_pixels))
        if isinstance(prior, Chain):
            return Prepared(object(), ask.n, lambda: self._decoded(prior.sample(ask.n, told, sampler, first=ask.first)))
        # Speculative decoding draws, by rounding, otherwise where others are drawn beside it.
        alone = getattr(sampler, "window", 1) > 1
        key = object() if alone else sampler.replace(seed=0).model_dump_json()
        return Prepared(key, ask.n, _Together(draw, sampler))

    def draw(self, prepared: Sequence[Prepared]) -> list[Drawn]:
        """The images of requests that go together."""
        first = prepared[0].ask
        if not isinstance(first, _Together):
            return [each.ask() for each in prepared]
        assert isinstance(self.prior, Prior)
        codes = self.prior.sample_together([each.ask.draw for each in prepared], first.sampler)
        images = self._decoded(torch.cat(codes)).images
        counts = [each.n for each in prepared]
        return [Drawn(*pair) for pair in zip(images.split(counts), (one.cpu() for one in codes), strict=True)]

    def _decoded(self, codes: Tensor) -> Drawn:
        return Drawn(decode(self.encoder.tokenizer, self.prior, codes), codes.cpu())

    def _inpainting(
        self, ask: Inpaint, draw: Draw, sampler: Sampler, content: Decoder, max_pixels: int
    ) -> Callable[[], Drawn]:
        prior, tokenizer = self.prior, self.encoder.tokenizer
        if not isinstance(prior, Prior):
            raise ValueError("a chain of priors does not fill in: serve one prior that models all codes")
        pair = content(ask.image, "image"), content(ask.mask, "mask")
        config = tokenizer.config
        image, mask = inpainting.read_masked(*pair, config.size, config.channels, max_pixels, ("image", "mask"))

        def filled() -> Drawn:
            found = inpainting.inpaint(
                prior,
                tokenizer,
                image,
                mask,
                draw.n,
                draw.condition,
                sampler,
                ring=ask.ring,
                keep_pixels=ask.keep_pixels,
                first=draw.first,
            )
            return Drawn(found.images, found.codes.cpu())

        return filled

    def _check_cost(self, sampler: Sampler) -> None:
        """Raises `ValueError` for settings that would keep the server at one request."""
        if not -(2**63) <= sampler.seed < 2**63:
            raise ValueError("sampler.seed: give a number of 64 bits")
        most = self.prior.layout.length * getattr(getattr(self.prior, "network", None), "parts", 1)
        steps = getattr(sampler, "steps", 1)
        if steps > most:
            raise ValueError(f"sampler.steps: {steps} passes for {most} codes; give {most} or fewer")


class _Together(NamedTuple):
    """What may be drawn with others of its sampler."""

    draw: Draw
    sampler: Sampler
