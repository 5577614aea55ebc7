"""Bodies of requests and answers, as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints

Picture = Annotated[str, StringConstraints(strict=True), Field(description="a picture's file, in base64")]
Code = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Number = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Format = Annotated[
    Literal["png", "npy"],
    Field(description="npy: float32 (H, W, C) in [-1, 1], of any number of channels; both in base64"),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Encode(_Body):
    """Pictures to codes."""

    images: list[Picture] = Field(min_length=1)


class Codes(BaseModel):
    """Codes of images, flat as the layout orders them."""

    codes: list[list[int]]
    fingerprint: str
    """of the tokenizer"""


class Decode(_Body):
    """Codes to pictures."""

    codes: list[list[Code]] = Field(min_length=1, description="a row an image, flat as the layout orders them")
    fingerprint: str | None = Field(default=None, description="of their tokenizer; another one's codes are refused")
    format: Format = "png"


class Images(BaseModel):
    """Pictures, each in base64."""

    images: list[str]


class _Drawing(_Body):
    n: int = Field(default=1, ge=1, strict=True, description="how many")
    condition: Any = Field(
        default=None,
        description="what the prior is told: a class, a text, a picture in base64; by its name where it is told "
        "several things; a list of n of these",
    )
    sampler: dict[str, Any] = Field(default_factory=dict, description="fields of the prior's sampler, such as top_p")
    first: Number = Field(default=0, description="number of the first sample: image i of a seed is always the same")
    format: Format = "png"


class Sample(_Drawing):
    """New images."""


class Inpaint(_Drawing):
    """The masked pixels of a picture drawn anew."""

    image: Picture
    mask: Picture = Field(description="a picture of its size, white where it is drawn anew")
    ring: int | None = Field(default=None, ge=0, le=1024, strict=True)
    keep_pixels: bool = Field(default=False, strict=True, description="leave the picture's own pixels outside the mask")


class Drawings(BaseModel):
    """Drawn images and their codes."""

    images: list[str]
    codes: list[list[int]]
    fingerprint: str


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    error: str
