"""Another picture, by the codes of its own tokenizer: grey to colour, low to high resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL.Image import Image
from pydantic import Field, field_validator
from torch import Tensor, nn

from prior.conditions.base import Condition, Context
from prior.digests import Index
from prior.sequences import LayoutConfig, Sequence
from tokenizers_vq import images
from tokenizers_vq.config import Config, ConfigError
from tokenizers_vq.data.shards import CodeShards, read_codes
from tokenizers_vq.data.transforms import VIEWS
from tokenizers_vq.folders import lasting_name
from tokenizers_vq.models import load
from tokenizers_vq.tokenizer import Tokenizer

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow


class ImageConfig(Config):
    """Another picture: its codes, each with its place, are told as vectors."""

    kind: Literal["image"] = "image"
    codes: tuple[str, ...] = ()
    """folders of codes of the pictures that are told, found by the images' keys; none: made as images are trained on"""
    tokenizer: str | None = None
    """tokenizer of the pictures that are told; null: the one of `codes`"""
    change: Literal["none", "grey"] = "none"
    """what is done to a picture before it is encoded"""
    image_size: Annotated[int, Field(ge=1)] | tuple[int, int] | None = None
    """size at which a picture is encoded; null: that of `codes`, or the tokenizer's own"""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """probability in training that no picture is told, which guidance needs"""
    layout: LayoutConfig | None = None
    """of the told codes; filled in"""
    fingerprint: str | None = None
    """of their tokenizer; filled in"""

    @field_validator("codes", mode="before")
    @classmethod
    def _one_folder(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def build(self, dim: int) -> ImageCondition:
        """The module, for a network of width `dim`."""
        if self.layout is None:
            raise ConfigError(("condition", "layout"), "required, but not given")
        return ImageCondition(dim, self)

    def fit(self, shards: Mapping[str, CodeShards]) -> ImageConfig:
        """With layout, size and fingerprint of the told codes, or of their tokenizer.

        Raises `ValueError` where an image has no picture, or the folders do not agree.
        """
        if not self.codes:
            return self._of_tokenizer()
        pairs = Pairs(self.codes)
        for folder, codes in shards.items():
            pairs.check(folder, codes)
        info = pairs.folders[0].info
        if self.fingerprint not in (None, info["fingerprint"]):
            raise ValueError(f"{self.codes[0]} holds codes of another tokenizer than model.condition says")
        return self.replace(
            tokenizer=self.tokenizer or info["tokenizer"],
            image_size=info["image_size"],
            layout=LayoutConfig.of(pairs.folders[0].layout),
            fingerprint=info["fingerprint"],
        )

    def _of_tokenizer(self) -> ImageConfig:
        if self.tokenizer is None:
            raise ValueError(
                "model.condition=image: give codes=FOLDER with the codes of the pictures that are told, or their "
                "tokenizer where images are trained on"
            )
        tokenizer = load(self.tokenizer)
        size = self.image_size or tokenizer.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.replace(
            tokenizer=lasting_name(self.tokenizer),
            image_size=size,
            layout=LayoutConfig.of(tokenizer.code_layout(height, width)),
            fingerprint=tokenizer.fingerprint,
        )


class Pairs:
    """Folders of codes of told pictures, looked up by key and view."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        self.folders = [read_codes(folder) for folder in folders]
        first = self.folders[0]
        for folder in self.folders[1:]:
            if folder.fingerprint != first.fingerprint or folder.layout != first.layout:
                raise ValueError(f"{folder.folder} and {first.folder} hold codes of two tokenizers or layouts")
        self.views = [VIEWS[folder.info["views"]].rows for folder in self.folders]
        self.indices = [Index(folder.keys[::views]) for folder, views in zip(self.folders, self.views, strict=True)]

    def check(self, folder: str, codes: CodeShards) -> None:
        """Raises `ValueError` where a row of `codes` has no picture here, or the views are others."""
        views = VIEWS[codes.info["views"]].rows
        if views not in self.views:
            raise ValueError(f"{folder} holds {views} views an image, {self.folders[0].folder} {self.views[0]}")
        keys = codes.keys[::views]
        missing = np.all([index.find(keys) < 0 for index in self.indices], axis=0)
        if missing.any():
            raise ValueError(
                f"{self.folders[0].folder} holds no codes of '{keys[int(missing.argmax())]}', which {folder} "
                f"holds, nor of {int(missing.sum()) - 1} others: encode the same images for both"
            )

    def find(self, keys: list[str], views: np.ndarray) -> Tensor:
        """int64 `(B, M)`: the codes told with these rows. Raises `ValueError` for a key that is nowhere."""
        found = torch.full((len(keys), self.folders[0].layout.length), -1)
        left = np.ones(len(keys), dtype=bool)
        for folder, rows, index in zip(self.folders, self.views, self.indices, strict=True):
            places = index.find(keys)
            here = left & (places >= 0)
            found[torch.from_numpy(here)] = folder[places[here] * rows + views[here]]
            left &= ~here
        if left.any():
            raise ValueError(f"{self.folders[0].folder} holds no codes of '{keys[int(left.argmax())]}'")
        return found


class ImageCondition(Condition):
    """Codes of a picture -> one vector each, with its place. `dim`: width of the network."""

    noun, name = "a picture", "image"

    def __init__(self, dim: int, config: ImageConfig) -> None:
        super().__init__()
        assert config.layout is not None
        self.config, self.dropout = config, config.dropout
        self.sequence = Sequence(config.layout.build())
        streams = len(self.sequence.layout.sizes)
        self.tokens = nn.Embedding(self.sequence.vocabulary + 1, dim)
        self.streams = nn.Embedding(streams, dim) if streams > 1 else None
        self.places = nn.Parameter(torch.empty(self.sequence.length, dim).normal_(std=0.02))
        for table in (self.tokens, self.streams):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        self._reader = _Reader()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of told pictures, loaded when it is first asked for.

        Raises `ValueError` where it is another one by now, and what `load` raises.
        """
        if self._reader.tokenizer is None:
            if self.config.tokenizer is None:
                raise ValueError("this prior does not say which tokenizer its pictures need: give their codes")
            self.adopt(load(self.config.tokenizer))
        if self._reader.tokenizer is None:
            raise ValueError(
                f"{self.config.tokenizer} is another tokenizer than that of the pictures, which this prior was trained "
                f"with ({str(self.config.fingerprint)[:8]}): put that one there, or give codes"
            )
        return self._reader.tokenizer.to(self.places.device)

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Use a tokenizer that is at hand, where it is the one of the told pictures."""
        if tokenizer.fingerprint == self.config.fingerprint:
            self._reader.tokenizer = tokenizer.eval()

    def picture_codes(self, pictures: Tensor) -> Tensor:
        """Images `(B, C, H, W)` in [-1, 1] at the size that is told -> changed as the config says, int64 `(B, M)`."""
        return self.sequence.layout.flatten(self.tokenizer.encode(changed(pictures, self.config.change)))

    def prepare(self, shards: Mapping[str, CodeShards]) -> None:
        """Open the folders of the told pictures."""
        if self.config.codes:
            self._reader.pairs = Pairs(self.config.codes)
            if self._reader.pairs.folders[0].fingerprint != self.config.fingerprint:
                raise ValueError(f"{self.config.codes[0]} holds codes of another tokenizer than this prior was told")

    def resolve(self, value: Any, n: int) -> tuple[Tensor, ...]:
        """A picture (a file, a PIL image), or its codes; for all rows, or one a row -> codes int64 `(n, M)`.

        None, and codes -1, stand for no picture. Raises `ValueError` for anything else.
        """
        if value is None:
            self.check_null()
            return self.nothing(n)
        codes = self._codes(value, n)
        if codes.shape[0] not in (1, n):
            raise ValueError(f"{codes.shape[0]} pictures are given for {n} rows: give one for all, or one for each")
        self.sequence.check(codes, unknown=True)
        return (codes.expand(n, -1),)

    def _codes(self, value: Any, n: int) -> Tensor:
        layout, device = self.sequence.layout, self.places.device
        if isinstance(value, (list, tuple)) and value and all(getattr(part, "ndim", 0) > 1 for part in value):
            value = layout.flatten(tuple(torch.as_tensor(part) for part in value))  # of a tokenizer of several grids
        if isinstance(value, (Tensor, np.ndarray)):
            codes = torch.as_tensor(value).to(device)
            codes = layout.flatten(codes) if codes.ndim > 2 else codes
            codes = codes[None] if codes.ndim == 1 else codes
            return codes if codes.is_floating_point() else codes.long()
        pictures = list(value) if isinstance(value, (list, tuple)) else [value]
        found = self.nothing(len(pictures))[0].clone()
        for row, picture in enumerate(pictures):
            if picture is None:
                self.check_null()
            elif isinstance(picture, (str, Path, Image)):
                read = images.read(picture, self.tokenizer.config.channels, size=self.config.image_size)
                found[row] = self.picture_codes(read.to(device))[0]
            else:
                what = type(picture).__name__
                raise ValueError(f"this prior is told a picture, got {what}: give a file, a PIL image, or its codes")
        return found

    def nothing(self, n: int) -> tuple[Tensor, ...]:
        """Codes -1."""
        return (torch.full((n, self.sequence.length), -1, device=self.places.device),)

    def encode(self, *told: Tensor) -> Context:
        """Codes `(B, M)`, -1 for no picture -> one vector each, `(B, M, D)`."""
        (codes,) = told
        x = self.tokens(codes.masked_fill(codes < 0, self.sequence.vocabulary)) + self.places
        x = x if self.streams is None else x + self.streams(self.sequence.streams)
        grids, levels = self.sequence.layout.grids, self.sequence.layout.levels
        plane = (0, *grids[0]) if len(grids) == levels == 1 and len(grids[0]) == 2 else None
        return Context(x, plane=plane)

    def take(self, batch: Mapping[str, Any], draw: bool = False) -> Any:
        """Codes of the pictures that belong to the batch's images: made with them, or found by their keys."""
        if "image_codes" in batch:
            return batch["image_codes"]
        if self._reader.pairs is None:
            raise ValueError("this prior is told a picture, but these codes have none: give condition.codes=FOLDER")
        return self._reader.pairs.find(batch["keys"], batch["views"])

    def received(self, value: Any, picture: Callable[[str], Image]) -> Any:
        """Every text becomes the picture that it stands for."""
        if isinstance(value, (list, tuple)):
            return [picture(one) if isinstance(one, str) else one for one in value]
        return picture(value) if isinstance(value, str) else value

    def read(self, text: str) -> list[Any]:
        """A file. Raises `ValueError` where it is not there."""
        if not Path(text).is_file():
            raise ValueError(f"no file {text}")
        return [text]

    def card(self) -> tuple[str, str]:
        """Which picture it is told."""
        change = "" if self.config.change == "none" else f" in {self.config.change}"
        size = self.config.image_size
        side = f"{size}x{size}" if isinstance(size, int) else "x".join(map(str, size or ()))
        return (
            f"It is told another picture{change}, of {side} pixels, as {self.sequence.length} codes.",
            '"picture.png"',
        )


class _Reader:
    """What a condition reads pictures by, no part of its state: copies of a prior share it."""

    def __init__(self) -> None:
        self.tokenizer: Tokenizer | None = None
        self.pairs: Pairs | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reader:
        return self


def changed(pictures: Tensor, change: str) -> Tensor:
    """Images `(B, C, H, W)` in [-1, 1] as they are, or with the grey of their three channels in each."""
    if change == "none" or pictures.shape[1] != 3:
        return pictures
    weights = pictures.new_tensor(_GREY).view(1, 3, 1, 1)
    return (pictures * weights).sum(dim=1, keepdim=True).expand_as(pictures)
