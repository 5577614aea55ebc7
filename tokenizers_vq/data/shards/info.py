"""`codes.json`: what a folder of codes holds and how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import Config, ConfigError, parse
from tokenizers_vq.data.transforms import check_views
from tokenizers_vq.text import parse_json, printable
from tokenizers_vq.writing import write_atomically

INFO = "codes.json"
MOST_SHARDS = 100_000
"""file names number the shards with five digits"""
MOST_CODES = 2**48
"""codes of a stream: published tokenizers have up to 2**36"""
MOST_JSON = 2**28
"""bytes: a web's worth of images has many broken ones"""

Side = Annotated[int, Field(ge=1, le=2**20)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class DamagedCodes(ValueError):  # noqa: N818
    """A file of a folder of codes that cannot be what `write_codes` wrote. Encoding again writes it anew."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, one_line(problem)
        super().__init__(f"{path} {self.problem}: encode again, with the same `tvq encode`")


class ReadingInfo(Config):
    """The fields of a `DataConfig` that decide which images are read, and how."""

    model_config = ConfigDict(extra="ignore")

    path: str | None = None
    split: str | None = None
    streaming: bool = False
    image_column: str | None = None
    range: tuple[Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(allow_inf_nan=False)]] | None = (
        None
    )
    label_column: str | None = None
    class_columns: tuple[str, ...] = ()
    caption_column: str | None = None
    limit: Count | None = None


class RecordInfo(Config):
    """What tells these images from others, as `identity.record` gives it."""

    files: Count
    classes: str | None = None
    blocks: Annotated[tuple[str, ...], Field(max_length=1000)]


class LabelsInfo(Config):
    """What is known of a column of classes without reading it."""

    bare: Count
    """rows that have no class"""
    highest: Annotated[int, Field(ge=-1, lt=2**63)]
    """the highest class that there is, -1 where there is none"""


class CodesInfo(Config):
    """What `codes.json` says. Fields of other versions are passed over."""

    model_config = ConfigDict(extra="ignore")

    tokenizer: str | None = None
    """path or name of the tokenizer"""
    fingerprint: Annotated[str, Field(min_length=1, max_length=256)]
    """fingerprint of the tokenizer"""
    layout: dict[str, Any]
    """layout of an image's codes"""
    image_size: Side | tuple[Side, Side] | None = None
    """side, or height and width, of the images that were encoded"""
    channels: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """channels of the images"""
    views: str = "center"
    """rows an image, one of `transforms.VIEWS`"""
    preprocessing: str | None = None
    """how images became their views, in words"""
    precision: str
    """what the networks computed in"""
    data: ReadingInfo = ReadingInfo()
    """which images were read"""
    source: str | None = None
    """the same in words, with their number"""
    folder: str | None = None
    """the folder that was chosen"""
    split: str | None = None
    """the split that was chosen"""
    record: RecordInfo | None = None
    """names, sizes and a hash of a sample of the files"""
    found: Count | None = None
    """images that the source has, readable or not"""
    label_names: tuple[str, ...] | None = None
    """names of the classes, in the order of their numbers"""
    class_names: dict[str, tuple[str, ...] | None] = Field(default_factory=dict)
    """further columns of classes, each with the names of its classes, null for numbers alone"""
    captions: bool = False
    """whether the images have captions"""
    shards: Annotated[int, Field(ge=1, le=MOST_SHARDS)]
    """number of files"""
    images: Count | None = None
    """images that all shards hold; None while some are missing"""
    broken: dict[str, str] | None = None
    """images that could not be read: name -> reason"""
    labels: dict[str, LabelsInfo] | None = None
    """by the name that a column of classes has in the shards; None in folders of before"""
    rows: Annotated[tuple[Count, ...], Field(max_length=MOST_SHARDS)] | None = None
    """rows of each shard, by which a row is found without opening them; None while some are missing"""

    @field_validator("layout")
    @classmethod
    def _check_layout(cls, value: dict[str, Any]) -> dict[str, Any]:
        layout = CodeLayout.from_dict(value)
        if max(layout.sizes) > MOST_CODES:
            raise ConfigError(("sizes",), f"{max(layout.sizes):,} codes are too many, at most 2**48 are kept on disk")
        return layout.to_dict()

    @field_validator("views")
    @classmethod
    def _check_views(cls, value: str) -> str:
        check_views(value)
        return value

    @field_validator("label_names")
    @classmethod
    def _check_names(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ConfigError((), "two classes have one name")
        return value

    def how(self) -> dict[str, Any]:
        """What the rows of every shard depend on: two shards that differ here do not mix.

        A tokenizer or data folder may be written another way and be the same.
        """
        plain, free = self.to_dict(), {"tokenizer", "source", "folder", "split", "record", "images", "broken"}
        free |= {"labels", "rows"}
        return {name: value for name, value in plain.items() if name not in free}


def read_info(folder: Path) -> CodesInfo:
    """What `codes.json` in a folder says.

    Raises `FileNotFoundError` where there is none, `DamagedCodes` naming the field that cannot be.
    """
    path = folder / INFO
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {INFO}: it is not a folder of codes; `tvq encode` makes one")
    try:
        return parse(CodesInfo, _read_json(path))
    except ValueError as error:
        raise DamagedCodes(path, f"cannot be read ({error})") from None


def write_info(folder: Path, info: CodesInfo) -> None:
    """Write `codes.json`."""
    write_atomically(folder / INFO, json.dumps(info.to_dict(), indent=2, ensure_ascii=False) + "\n")


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing in which codes were made otherwise than `now`, in words; both as `CodesInfo.how` gives them.

    Empty where there is none.
    """
    data = before.get("data")
    old = data if isinstance(data, dict) else {}
    pairs = {name: (before.get(name), value) for name, value in now.items() if name != "data"}
    pairs.update({f"data.{name}": (old.get(name), value) for name, value in now["data"].items()})
    pairs["data.path"] = (_resolved(old.get("path")), _resolved(now["data"]["path"]))
    different = ((name, was, wanted) for name, (was, wanted) in pairs.items() if unlike(was, wanted))
    return next((one_line(f"codes made with {name} = {was}, now {wanted}") for name, was, wanted in different), "")


def unlike(before: Any, now: Any) -> bool:
    """Whether two fields say different things: what an older version did not write was not there."""
    return (before or None) != (now or None)


def one_line(text: str) -> str:
    """`text` without line breaks or other characters that a terminal obeys, and no longer than a screen."""
    plain = printable(" ".join(text.split()))
    return plain if len(plain) <= 2000 else f"{plain[:2000]}..."


def short(fingerprint: str | None) -> str:
    """As much of a fingerprint as tells tokenizers apart."""
    return one_line(str(fingerprint)[:12])


def _resolved(path: Any) -> Any:
    """An absolute path where there is one of that name, a folder or file; else the name."""
    try:
        return str(Path(path).expanduser().resolve()) if path and Path(path).expanduser().exists() else path
    except (TypeError, ValueError, RuntimeError):  # no path, or of a user that is not here
        return path


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"{path.stat().st_size:,} bytes are too many")
    data = parse_json(path.read_bytes().decode(), MOST_JSON)
    if not isinstance(data, dict):
        raise ValueError(f"holds no JSON object but a {type(data).__name__}")
    return data
