"""The tokenizer: encoder, quantizer and decoder behind four verbs; its config, fingerprint, load and save."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq import checks, folders, notebooks
from tokenizers_vq.codes import CodeLayout, Codes, Output, whole_numbers
from tokenizers_vq.config import Config, ConfigError, Size, nearest, parse
from tokenizers_vq.devices import without_memory
from tokenizers_vq.images import check
from tokenizers_vq.masking import Touched, check_mask, touched_cells, touched_codes
from tokenizers_vq.networks import Decoder, DecoderConfig, Encoder, EncoderConfig
from tokenizers_vq.pretrained import Pretrained, model_card
from tokenizers_vq.quantizers import Quantizer, QuantizerConfig
from tokenizers_vq.quantizers.base import copy_folded, first_steps, training_buffers

WEIGHTS = Path(__file__).parent / "weights"


class PixelRange(Config):
    """What the networks see: images in [-1, 1] are mapped to [low, high], and the output back."""

    low: float = Field(default=-1.0, ge=-1e6, le=1e6)
    """the networks' value of black"""
    high: float = Field(default=1.0, ge=-1e6, le=1e6)
    """the networks' value of white"""
    clamp: bool = True
    """`decode` clamps to [-1, 1] (never `forward`: it would kill gradients)"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low == self.high:
            raise ConfigError(("high",), f"black and white are both {self.low}")
        return self


class TokenizerFields(Config):
    """What the config of every tokenizer has."""

    kind: str
    image_size: Size | tuple[Size, Size] = 256
    """the size it is made for: one side, or height and width; others work where the stride divides them"""
    channels: Size = 3
    """channels of the images"""
    pixels: PixelRange = PixelRange()
    """range that the networks see"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        output = getattr(self, "decoder").output  # noqa: B009  (every kind of tokenizer declares its own)
        if output == "logit_laplace" and not 0 < self.pixels.low < self.pixels.high < 1:
            raise ConfigError(("pixels",), "a logit-Laplace decoder needs pixels inside (0, 1): low=0.1, high=0.9")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """`image_size` as height and width."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)


class TokenizerConfig(TokenizerFields):
    """One encoder, one quantizer, one decoder."""

    kind: Literal["flat"] = "flat"
    encoder: EncoderConfig
    """network from pixels to features"""
    quantizer: QuantizerConfig
    """features to codes and back"""
    decoder: DecoderConfig
    """network from features to pixels"""

    @property
    def quantizer_paths(self) -> dict[str, Any]:
        """The quantizer's config by its place in this one."""
        return {"quantizer": self.quantizer}

    def folded(self) -> TokenizerConfig:
        """With the quantizer that a saved one has, see `Quantizer.folded`."""
        folded = self.quantizer.folded()
        return self if folded is self.quantizer else self.replace(quantizer=folded)

    def build(self) -> Tokenizer:
        """The tokenizer, untrained."""
        return Tokenizer(self)


def kind_of(data: Any) -> str:
    """The kind of a tokenizer's config, or of the plain data of one."""
    return str(data.get("kind", "flat") if isinstance(data, Mapping) else getattr(data, "kind", "flat"))


class Tokenizer(nn.Module, Pretrained, library_name="tokenizers-vq", tags=["image-tokenizer"]):
    """Images `(B, C, H, W)` in [-1, 1] to int64 codes `(B, *grid)` and back.

    `encode` and `decode` compute in the parameters' dtype without autograd; `encode_features` and `decode_features`
    are the differentiable halves around the quantizer.
    """

    config: TokenizerConfig

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        quantizer = config.quantizer.build()
        self._assemble(
            config,
            config.encoder.build(dim=quantizer.in_dim, channels=config.channels, image_size=config.size),
            quantizer,
            config.decoder.build(dim=quantizer.dim, channels=config.channels, image_size=config.size),
        )

    def _assemble(self, config: Any, encoder: Encoder, quantizer: Quantizer, decoder: Decoder) -> None:
        self.config, self.encoder, self.quantizer, self.decoder = config, encoder, quantizer, decoder

    @classmethod
    def from_parts(
        cls,
        encoder: Encoder,
        quantizer: Quantizer,
        decoder: Decoder,
        *,
        image_size: int | tuple[int, int] = 256,
        channels: int = 3,
        pixels: PixelRange | None = None,
    ) -> Tokenizer:
        """A tokenizer of foreign modules that keep the contracts of encoder, quantizer and decoder.

        It trains, encodes and decodes, but no config describes it, so `save_pretrained` and `fingerprint` refuse it.
        """
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._assemble(_Parts(image_size, channels, pixels or PixelRange()), encoder, quantizer, decoder)
        return self

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """The quantizers, coarse first."""
        return (self.quantizer,)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the parameters, in which the API computes."""
        return next(self.decoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.decoder.parameters()).device

    def code_layout(self, height: int | None = None, width: int | None = None) -> CodeLayout:
        """Layout of the codes of an image, by default of `config.image_size`. Raises `ValueError` for other sizes."""
        size = self.config.size
        height = size[0] if height is None else height
        return self.quantizer.layout(self.encoder.grid(height, size[1] if width is None else width))

    def encode_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)` in [-1, 1] -> `(B, D, *grid)`, before the quantizer; differentiable.

        Raises `ValueError` for integers, other ranges, layouts or channels, and for sizes the stride does not divide.
        """
        check(images, self.config.channels)
        self.encoder.grid(images.shape[-2], images.shape[-1])
        return self.encoder(self.to_pixels(images.to(self.dtype)))

    def decode_features(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` looked-up vectors -> images `(B, C, H, W)` in [-1, 1]; differentiable."""
        decoded = self.render(self.decoder(features.to(self.dtype)))
        return decoded.clamp(-1, 1) if self.config.pixels.clamp else decoded

    @torch.no_grad()
    def encode(self, images: Tensor) -> Codes:
        """`(B, C, H, W)` in [-1, 1] -> int64 codes. Raises `ValueError` as `encode_features` does."""
        if torch.compiler.is_compiling():
            return self._encode(images)
        with checks.together():
            return self._encode(images)

    def _encode(self, images: Tensor) -> Codes:
        return self.quantizer.encode(self.encode_features(images))

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        """Integer codes -> images `(B, C, H, W)` in [-1, 1].

        Where `prefixes` is not 0 also the first codes alone, in the shape that `code_layout().prefix(n)` describes.
        Raises `ValueError` for codes of another type or number of dimensions, or out of range.
        """
        codes, layout = whole_numbers(codes), self.code_layout()
        if getattr(self.quantizer, "nested", False) and (kept := first_steps(codes, layout)) is not None:
            return self.decode_features(self.quantizer.partial(*kept))
        if isinstance(codes, Tensor) and codes.ndim != 1 + len(layout.grids[0]) + (layout.levels > 1):
            raise ValueError(
                f"codes must be as `encode` gives them, (B, *grid), got {tuple(codes.shape)}; add the batch dimension "
                "with codes[None], and give flat rows their grid with code_layout().unflatten(codes)"
            )
        return self.decode_features(self.quantizer.lookup(codes))

    @property
    def prefixes(self) -> int:
        """How many prefixes of an image's codes `decode` takes, as `CodeLayout.steps` counts them; 0 = none.

        Those of residual levels and of scales, whose vectors add up, and of rows where the decoder knows them.
        """
        layout = self.code_layout()
        rows = len(layout.grids) == layout.levels == 1
        knows = getattr(self.decoder if rows else self.quantizers[0], "prefixes" if rows else "nested", False)
        return layout.steps if knows and len(self.quantizers) == 1 else 0

    def resized(self, image_size: int | tuple[int, int]) -> Tokenizer:
        """A tokenizer of copies of these weights for images of another size (a side, or height and width).

        The scales of a multi-scale quantizer are stretched to the new grid (`quantizers.schedules`); most
        other tokenizers take any size as they are. Raises `ValueError` for sizes that the stride does not divide, and
        for networks with learned positions, which take other sizes by themselves.
        """
        changes: dict[str, Any] = {"image_size": image_size}
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if isinstance(self.config, TokenizerConfig):
            changes["quantizer"] = self.config.quantizer.resized(self.encoder.grid(*size))
        else:
            self.code_layout(*size)
        made = self.config.replace(**changes).build()
        try:
            made.load_state_dict(self.state_dict())
        except RuntimeError:
            raise ValueError(
                f"its weights hold places of images of {self.config.size[0]}x{self.config.size[1]}, which it stretches "
                "itself: encode images of other sizes with it as it is"
            ) from None
        return made.to(device=self.device, dtype=self.dtype).train(self.training)

    def mask_codes(self, mask: Tensor, ring: int | None = None) -> Touched:
        """Pixels bool `(H, W)`, True where they are masked -> bool, True for the codes that stand for them.

        A code stands for the pixels of its cell, the `stride x stride` square at its place; of several grids, for all
        that its cell covers. `ring`: how many cells around those count too. None is 1 where the encoder's features
        depend on pixels beside their cell, as they do in every encoder of this package: what is masked would show in
        the codes that are kept. It thins out with distance, but where there is attention or a norm over the grid every
        code depends on every pixel a little; then the codes meant are those that depend on the mask most.

        The result has the shape of one image's codes, a tuple of several grids. Raises `ValueError` for masks of
        another type, sizes as `encode` refuses them, and tokenizers whose codes stand in a row, not on a grid.
        """
        check_mask(mask)
        if len(self.code_layout().grids[0]) != 2:
            raise ValueError("these codes stand in a row and for no place in the image: a mask of pixels touches all")
        if ring is None:
            ring = int(getattr(self.encoder, "leaks", True))
        if ring < 0:
            raise ValueError(f"ring must be 0 or more, got {ring}")
        found = self._mask_codes(mask, ring)
        return found[0] if len(found) == 1 else tuple(found)

    def _mask_codes(self, mask: Tensor, ring: int) -> list[Tensor]:
        height, width = mask.shape
        return touched_codes(
            touched_cells(mask, self.encoder.grid(height, width), ring), self.code_layout(height, width)
        )

    def forward(self, images: Tensor, render: bool = True) -> Output:
        """Autoencode `(B, C, H, W)` for training: everything on the way, nothing clamped.

        `render=False` leaves the images out, for losses of the decoder's output alone.
        """
        features = self.encode_features(images)
        quantized = self.quantizer(features)
        output = self.decoder(quantized.features)
        return Output(self.render(output) if render else None, output, features, quantized)

    def render(self, output: Tensor) -> Tensor:
        """The decoder's raw output -> images mapped to [-1, 1], not clamped."""
        pixels, rendered = self.config.pixels, self.decoder.render(output)
        if (pixels.low, pixels.high) == (-1.0, 1.0):
            return rendered
        return (rendered - pixels.low) * (2 / (pixels.high - pixels.low)) - 1

    def to_pixels(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] -> the range that the networks see."""
        pixels = self.config.pixels
        if (pixels.low, pixels.high) == (-1.0, 1.0):
            return images
        return (images + 1) * ((pixels.high - pixels.low) / 2) + pixels.low

    def folded(self) -> Tokenizer:
        """A tokenizer of the same codes without what only training of its quantizers needs, as `save_pretrained` writes
        it: itself, or a copy where a network makes the codebook (`vqbridge`). The fingerprint is the same."""
        config = self._savable_config().folded()
        if config is self.config:
            return self
        made = config.build()
        copy_folded(self, made)
        made.card = self.card
        return made.to(device=self.device, dtype=self.dtype).train(self.training)

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides the codes: equal for float32 and bfloat16 copies of one tokenizer."""
        if (folded := self.folded()) is not self:
            return folded.fingerprint
        config = self._savable_config()
        quantizers = [quantizer.described() for quantizer in config.quantizer_paths.values()]
        several = (
            {"quantizers": quantizers} if "quantizers" in type(config).model_fields else {"quantizer": quantizers[0]}
        )
        described: dict[str, Any] = {"encoder": config.encoder.to_dict(defaults=False), **several}
        described["pixels"] = [config.pixels.low, config.pixels.high]
        digest = hashlib.sha256(folders.to_json(described).encode())
        for part in (self.encoder, *self.quantizers):
            unread = training_buffers(part)
            for name, tensor in sorted(part.state_dict().items()):
                if name not in unread:
                    rounded = tensor.detach().cpu()
                    rounded = rounded.to(torch.bfloat16).view(torch.int16) if rounded.is_floating_point() else rounded
                    digest.update(f"{name}{tuple(rounded.shape)}".encode() + rounded.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _repr_html_(self) -> str:
        """In a notebook: parameters, images, layout and fingerprint, in place of every layer as in the plain repr."""
        config = self.config
        rows = [
            ("parameters", f"{sum(parameter.numel() for parameter in self.parameters()):,}"),
            ("images", f"{config.size[0]}x{config.size[1]}, {config.channels} channels"),
            ("on", f"{self.device}, {str(self.dtype).removeprefix('torch.')}"),
        ]
        if isinstance(config, TokenizerFields):
            rows.insert(0, ("quantizer", " + ".join(part.kind for part in config.quantizer_paths.values())))
            rows.append(("fingerprint", self.fingerprint[:12]))
        return f"<div>{notebooks.table(rows, type(self).__name__)}{self.code_layout()._repr_html_()}</div>"

    def _savable_config(self) -> TokenizerConfig:
        if not isinstance(self.config, TokenizerFields):
            raise ValueError("a tokenizer made by from_parts has no config: build it from a TokenizerConfig to save it")
        return self.config

    def generate_model_card(self, **card: Any) -> ModelCard:
        """The model card; `card` as of `pretrained.model_card`, and `name`, by which it is loaded."""
        config, layout = self._savable_config(), self.code_layout()
        grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
        quantizers = [quantizer.kind for quantizer in config.quantizer_paths.values()]
        kinds = f"{quantizers[0]} quantizer" if len(quantizers) == 1 else f"{' and '.join(quantizers)} quantizers"
        summary = (
            f"{config.encoder.kind} encoder, {kinds}, {config.decoder.kind} decoder; "
            f"{sum(parameter.numel() for parameter in self.parameters()):,} parameters. An image of "
            f"{'x'.join(map(str, config.size))} pixels becomes {layout.length} codes ({grids}) of "
            f"{' / '.join(map(str, layout.sizes))}: {layout.bits:.0f} bits. Fingerprint `{self.fingerprint}`."
        )
        usage = (
            f'import tokenizers_vq as tvq\n\ntok = tvq.load("{card.pop("name", "PATH")}")\n'
            f'codes = tok.encode(tvq.images.read("cat.jpg", size={config.image_size}))\n'
            f"image = tvq.images.to_pil(tok.decode(codes)[0])"
        )
        return model_card(summary, usage, ["image-tokenizer"], **{"title": "Image tokenizer", **card})

    @classmethod
    def _find(cls, name: str | Path, **options: Any) -> Path:
        return folders.find(name, WEIGHTS, "tokenizer", **options)

    @classmethod
    def _load(cls, folder: Path) -> Tokenizer:
        return load_folder(folder)


class _Parts:
    """Stands where the config would, in a tokenizer of foreign modules."""

    def __init__(self, image_size: int | tuple[int, int], channels: int, pixels: PixelRange) -> None:
        self.image_size, self.channels, self.pixels = image_size, channels, pixels
        self.size = image_size if isinstance(image_size, tuple) else (image_size, image_size)


def load_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a saved folder, float32, in eval mode. Raises one line for anything missing or surplus."""
    config = read_tokenizer_config(folders.read_config(folder), str(folder / "config.json"))
    with without_memory():
        tokenizer = config.build()
    folders.load_weights(tokenizer, folder)
    tokenizer.card = folders.read_card(folder)
    return tokenizer.eval()


def read_tokenizer_config(data: Mapping[str, Any], source: str | None = None) -> Any:
    """The config of a tokenizer of any kind from plain data. Raises `ConfigError`, headed by `source`.

    The kinds are the subclasses of `TokenizerFields`; whoever imports `tokenizers_vq.models` has them all.
    """
    configs = {config.model_fields["kind"].default: config for config in TokenizerFields.__subclasses__()}
    kind = kind_of(data)
    if kind not in configs:
        where = f"{source}: " if source else ""
        raise ConfigError((), f"{where}kind: unknown kind '{kind}'{nearest(kind, configs)}")
    return parse(configs[kind], data, source)
