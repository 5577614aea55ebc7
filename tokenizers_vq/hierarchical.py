"""Tokenizers of several grids, the finer quantized given the coarser (VQ-VAE-2, arXiv 1906.00446)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.codes import CodeLayout, Codes, Output, Quantized, whole_numbers
from tokenizers_vq.config import ConfigError
from tokenizers_vq.images import check
from tokenizers_vq.masking import touched_cells, touched_codes
from tokenizers_vq.networks.vqvae2 import Vqvae2DecoderConfig, Vqvae2EncoderConfig
from tokenizers_vq.quantizers import Quantizer, QuantizerConfig
from tokenizers_vq.quantizers.statistics import joined_stats
from tokenizers_vq.tokenizer import Tokenizer, TokenizerConfig, TokenizerFields, kind_of


class HierarchicalConfig(TokenizerFields):
    """One encoder, a quantizer for each of its levels, one decoder."""

    kind: Literal["hierarchical"] = "hierarchical"
    encoder: Vqvae2EncoderConfig
    """network from pixels to features of several grids"""
    quantizers: Annotated[tuple[QuantizerConfig, ...], Field(min_length=2)]
    """features to codes and back, one a level, coarse first"""
    decoder: Vqvae2DecoderConfig
    """network from features of all levels to pixels"""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = len(self.quantizers)
        if len(self.encoder.downsamples) != levels:
            problem = f"{levels} quantizers need as many levels, got {list(self.encoder.downsamples)}"
            raise ConfigError(("encoder", "downsamples"), problem)
        if self.decoder.downsamples != self.encoder.downsamples:
            raise ConfigError(("decoder", "downsamples"), f"must be the encoder's, {list(self.encoder.downsamples)}")
        return self

    def folded(self) -> HierarchicalConfig:
        """With the quantizers that a saved one has, see `Quantizer.folded`."""
        folded = tuple(quantizer.folded() for quantizer in self.quantizers)
        return self if folded == self.quantizers else self.replace(quantizers=folded)

    @property
    def quantizer_paths(self) -> dict[str, Any]:
        """Every quantizer's config by its place in this one, coarse first."""
        return {f"quantizers.{level}": quantizer for level, quantizer in enumerate(self.quantizers)}

    def build(self) -> HierarchicalTokenizer:
        """The tokenizer, untrained."""
        return HierarchicalTokenizer(self)


AnyTokenizerConfig = Annotated[
    Annotated[TokenizerConfig, Tag("flat")] | Annotated[HierarchicalConfig, Tag("hierarchical")],
    Discriminator(kind_of),
]
"""a tokenizer's config of either kind, flat where it does not say"""


class HierarchicalTokenizer(Tokenizer):
    """Images `(B, C, H, W)` in [-1, 1] to a tuple of int64 codes `(B, *grid)`, coarse first, and back.

    Features are tuples too. Level i's latents are `heads[i](encoder_features[i], coarser)`, with `coarser` the
    looked-up vectors of all coarser levels.
    """

    config: HierarchicalConfig  # type: ignore[assignment]  # the flat tokenizer's is of another kind
    encoder: Any
    quantizer: nn.ModuleList  # type: ignore[assignment]  # one quantizer a level

    def __init__(self, config: HierarchicalConfig) -> None:
        nn.Module.__init__(self)
        quantizers = [quantizer.build() for quantizer in config.quantizers]
        dims = [quantizer.dim for quantizer in quantizers]
        sizes: dict[str, Any] = {"channels": config.channels, "image_size": config.size}
        encoder = config.encoder.build(in_dims=[quantizer.in_dim for quantizer in quantizers], dims=dims, **sizes)
        self._assemble(config, encoder, quantizers, config.decoder.build(dims=dims, **sizes))
        self.code_layout()  # refuses quantizers that cannot stand beside one another

    def _assemble(self, config: Any, encoder: Any, quantizer: Any, decoder: Any) -> None:
        self.config, self.encoder, self.decoder = config, encoder, decoder
        self.quantizer = nn.ModuleList(quantizer)

    @property
    def heads(self) -> nn.ModuleList:
        """For each level, the module from its features and the coarser levels' vectors to its latents."""
        return self.encoder.heads

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """The quantizers, coarse first."""
        return tuple(self.quantizer)  # type: ignore[arg-type]  # of Modules, as far as ModuleList says

    def code_layout(self, height: int | None = None, width: int | None = None) -> CodeLayout:
        """Layout of the codes of an image, by default of `config.image_size`. Raises `ValueError` for other sizes."""
        size = self.config.size
        grids = self.encoder.grids(size[0] if height is None else height, size[1] if width is None else width)
        layouts = [quantizer.layout(grid) for quantizer, grid in zip(self.quantizers, grids, strict=True)]
        if any(len(layout.grids) > 1 for layout in layouts) or len({layout.levels for layout in layouts}) > 1:
            raise ValueError(
                "the quantizers of a hierarchical tokenizer give one grid each, all of as many levels; these give "
                f"{[len(layout.grids) for layout in layouts]} grids of {[layout.levels for layout in layouts]} levels"
            )
        return CodeLayout(grids, layouts[0].levels, tuple(size for layout in layouts for size in layout.sizes))

    def encode_features(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # one a level
        """`(B, C, H, W)` in [-1, 1] -> `(B, D_i, *grid_i)` of every level, coarse first, before the quantizers.

        Differentiable; the coarser codes that a finer level is given count as constants. Raises `ValueError` as
        `Tokenizer.encode_features` does.
        """
        latents, _ = self._quantize(images, _by_lookup)
        return latents

    def _mask_codes(self, mask: Tensor, ring: int) -> list[Tensor]:
        height, width = mask.shape
        grids = self.encoder.grids(height, width)
        layouts = [quantizer.layout(grid) for quantizer, grid in zip(self.quantizers, grids, strict=True)]
        return [
            codes
            for grid, layout in zip(grids, layouts, strict=True)
            for codes in touched_codes(touched_cells(mask, grid, ring), layout)
        ]

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Codes:
        _, codes = self._quantize(images, _by_lookup)
        return tuple(codes)

    def _quantize(
        self, images: Tensor, quantize: Callable[[Quantizer, Tensor], tuple[Tensor, Any]]
    ) -> tuple[tuple[Tensor, ...], list[Any]]:
        """Latents of every level, and what `quantize` gives beside the vectors that the finer levels are given."""
        check(images, self.config.channels)
        self.encoder.grids(images.shape[-2], images.shape[-1])
        features = self.encoder(self.to_pixels(images.to(self.dtype)))
        latents: list[Tensor] = []
        coarser: list[Tensor] = []
        results = []
        for head, quantizer, level in zip(self.heads, self.quantizers, features, strict=True):
            latents.append(head(level, coarser))
            vectors, result = quantize(quantizer, latents[-1])
            coarser.append(vectors.to(self.dtype))
            results.append(result)
        return tuple(latents), results

    def decode_features(self, features: Sequence[Tensor]) -> Tensor:  # type: ignore[override]  # one a level
        """`(B, D_i, *grid_i)` looked-up vectors, coarse first -> images `(B, C, H, W)` in [-1, 1]; differentiable."""
        decoded = self.render(self.decoder([level.to(self.dtype) for level in features]))
        return decoded.clamp(-1, 1) if self.config.pixels.clamp else decoded

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        """A tuple of integer codes, coarse first -> images `(B, C, H, W)` in [-1, 1].

        Raises `ValueError` for another number of grids, grids that do not fit one another, or codes of another type or
        out of range.
        """
        codes = whole_numbers(codes)
        self._check_codes(codes)
        vectors = [quantizer.lookup(part) for quantizer, part in zip(self.quantizers, codes, strict=True)]
        return self.decode_features(vectors)

    def _check_codes(self, codes: Codes) -> None:
        layout = self.code_layout()
        tail, count = int(layout.levels > 1), len(layout.grids)
        if not isinstance(codes, (tuple, list)) or len(codes) != count or any(part.ndim != 3 + tail for part in codes):
            got = [tuple(part.shape) for part in codes] if isinstance(codes, (tuple, list)) else tuple(codes.shape)
            raise ValueError(
                f"codes must be as `encode` gives them, {count} of (B, *grid), coarse first, got {got}; give flat rows "
                "their grids with code_layout().unflatten(codes)"
            )
        first = layout.grids[0]
        for part, grid in zip(codes, layout.grids, strict=True):
            if any(part.shape[1 + axis] * first[axis] != codes[0].shape[1 + axis] * grid[axis] for axis in (0, 1)):
                got = [tuple(part.shape[1:3]) for part in codes]
                raise ValueError(f"codes of grids {got} are not of one image, whose grids are as {list(layout.grids)}")

    def forward(self, images: Tensor, render: bool = True) -> Output:
        """Autoencode `(B, C, H, W)` for training: everything on the way, nothing clamped.

        `render=False` leaves the images out. `quantized` joins the levels: features and codes are tuples; losses of one
        name are summed; statistics are joined as `joined_stats` does, and stand for each level too (`level 1/usage`,
        coarse first), as do the losses.
        """
        features, levels = self._quantize(images, _by_forward)
        quantized = joined(levels)
        output = self.decoder(quantized.features)
        return Output(self.render(output) if render else None, output, features, quantized)


def _by_lookup(quantizer: Quantizer, latents: Tensor) -> tuple[Tensor, Codes]:
    codes = quantizer.encode(latents)
    return quantizer.lookup(codes).detach(), codes


def _by_forward(quantizer: Quantizer, latents: Tensor) -> tuple[Tensor, Quantized]:
    quantized = quantizer(latents)
    return quantized.features, quantized


def joined(levels: Sequence[Quantized]) -> Quantized:
    """One result of several levels; see `HierarchicalTokenizer.forward`."""
    losses: dict[str, Tensor] = {}
    stats: dict[str, Tensor] = {}
    for number, level in enumerate(levels, 1):
        for name, loss in level.losses.items():
            losses[name] = losses[name] + loss if name in losses else loss
        stats |= {f"level {number}/{name}": value for name, value in level.stats.items()}
        stats |= {f"level {number}/{name}": loss.detach() for name, loss in level.losses.items()}
    stats |= joined_stats([level.stats for level in levels])
    return Quantized(tuple(level.features for level in levels), tuple(level.codes for level in levels), losses, stats)
