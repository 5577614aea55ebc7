"""The published tokenizers: where they lie, under which licences, how well they reconstruct.

The facts are data, `catalogue/FAMILY.yaml`: fields of `Published` at the top hold for all of its `models`. What no
source says is left out, never guessed. Converted copies are kept in a folder of their own, see `cache`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator
from typing_extensions import Self

from tokenizers_vq.config import Config, ConfigError, nearest, parse, read_yaml

DATA = Path(__file__).with_suffix("")
REVISION = "1"
"""part of the cache's path: raised when a converter's result changes, so that no older copy is taken for a new one"""

Positive = Annotated[int, Field(ge=1)]


class Score(Config):
    """One published FID: of reconstructions, or of generated images."""

    value: float
    """the FID"""
    protocol: str
    """data, size, reference and tool, as far as the source says"""
    said_by: str
    """the source"""

    def words(self, name: str) -> str:
        """What the value is; `name`: rFID or gFID."""
        return f"{name}, {self.protocol} ({self.said_by})"


class File(Config):
    """One file of the weights."""

    name: str
    """path in the repository or archive, may be a pattern on the Hub"""
    url: str | None = None
    """direct link"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """checksum, checked after the download"""


class Entry(Config):
    """What is known of any published model, and where its weights lie."""

    name: str
    """FAMILY/MODEL"""
    source: str
    """`convert`'s source"""
    about: str
    """what it is and on what it was trained"""
    paper: str
    """where it is described"""
    code: str
    """reference implementation"""
    code_licence: str | None = None
    """licence of the code; `not stated` where its repository states none"""
    weights_licence: str | None = None
    """licence of the weights; `not stated` where their publisher states none"""
    note: str | None = None
    """what to know before using it"""
    parameters: str | None = None
    """number of parameters as published"""
    preset: str | None = None
    """model preset of the same architecture"""
    image_size: Positive | None = None
    """side of the images that it was made for"""
    hub: str | None = None
    """Hub repository of the weights"""
    revision: str | None = None
    """commit of that repository; unset: its newest"""
    page: str | None = None
    """where they are fetched by hand"""
    files: tuple[File, ...] = ()
    """files that are needed"""
    weights: str | None = None
    """what of them `convert` takes; unset: the only file"""
    config: dict[str, Any] | None = None
    """what `convert` is given beside the weights"""
    config_file: str | None = None
    """published config that `tvq convert` needs"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.hub is None) == (self.page is None):
            raise ConfigError(("hub",), "give either the Hub repository or the page of the weights, not both")
        if self.hub is not None and not self.files:
            raise ConfigError(("files",), "a Hub repository needs the names of its files")
        return self

    @property
    def checkpoint(self) -> str | None:
        """What `convert` takes, relative to the files' folder; None where it is not known."""
        return self.weights or (self.files[0].name if len(self.files) == 1 else None)

    @property
    def figures(self) -> dict[str, float]:
        """Published figures by what they are, as a model card shows them."""
        return {}


class Published(Entry):
    """One published tokenizer."""

    grids: tuple[tuple[Positive, ...], ...] | None = None
    """grids of codes at that size"""
    levels: Positive = 1
    """codes at one place"""
    codes: Positive | None = None
    """codes in the codebook"""
    dim: Positive | None = None
    """width of a code vector"""
    rfid: tuple[Score, ...] = ()
    """reconstruction FIDs"""

    @property
    def figures(self) -> dict[str, float]:
        """Reconstruction FIDs by their protocol."""
        return {score.words("rFID"): score.value for score in self.rfid}


E = TypeVar("E", bound=Entry)


def grid_texts(published: Published) -> list[str]:
    """Each grid as people write it, with its levels: 16x16, or 8x8x4; none where the grids are not known."""
    tail = (published.levels,) if published.levels > 1 else ()
    return ["x".join(map(str, (*grid, *tail))) for grid in published.grids or ()]


def read_entries(kind: type[E], folder: Path) -> dict[str, E]:
    """The entries of all `FAMILY.yaml` of a folder, by name.

    Raises `ValueError` naming the file and field of a wrong entry.
    """
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        shared = read_yaml(path)
        for model, fields in shared.pop("models").items():
            name = f"{path.stem}/{model}"
            found[name] = parse(kind, {**shared, **fields, "name": name}, f"{path.name}: {model}")
    return found


@lru_cache
def entries() -> Mapping[str, Published]:
    """Every published tokenizer by name, sorted. Raises as `read_entries`."""
    return read_entries(Published, DATA)


def entry(name: str) -> Published:
    """The entry of a name. Raises `ValueError` with near names."""
    if name not in entries():
        raise ValueError(f"no published tokenizer '{name}'{nearest(name, entries())}")
    return entries()[name]


def cache() -> Path:
    """Where converted copies lie: the folder `TVQ_CACHE`, else `tokenizers-vq` in huggingface_hub's."""
    from huggingface_hub import constants

    return Path(os.environ.get("TVQ_CACHE") or Path(constants.HF_HOME) / "tokenizers-vq").expanduser()


def converted(name: str) -> Path:
    """The folder of the converted copy of a published tokenizer, there or not."""
    return cache() / f"converted-{REVISION}" / name


def by_hand(published: Entry, folder: Path | None = None, command: str = "tvq convert", options: str = "") -> str:
    """One line: what to fetch, and the command that converts it into `folder`, where `load` finds it.

    `folder` is that of a tokenizer, unless given.
    """
    links = [file.url or file.name for file in published.files]
    what = f"{published.page or f'https://huggingface.co/{published.hub}'}" + (
        f" ({', '.join(links)})" if links else ""
    )
    config = f" --config {published.config_file}" if published.config_file else ""
    checkpoint = "FOLDER" if published.checkpoint == "." else published.checkpoint or "CHECKPOINT"
    whole = f"{command} {published.source} {checkpoint}{config}{options}"
    return (
        f"the weights of '{published.name}' are not on the Hub: fetch {what}, then "
        f"`{whole} --out {folder or converted(published.name)}`, and load('{published.name}') finds them"
    )


def sha256(path: Path) -> str:
    """The checksum of a file. Raises `FileNotFoundError` for a missing one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def card(published: Entry) -> dict[str, Any]:
    """What the model card of a converted copy says beyond where it came from, as `save_pretrained` takes it."""
    known = published.weights_licence not in (None, "not stated")
    return {
        "title": f"{published.name}: {published.about}",
        "data": f"{published.about}; described in {published.paper}, reference {published.code}",
        "licence": published.weights_licence if known else None,
        "terms": f"{published.weights_licence or 'not known'}" + (f"; {published.note}" if published.note else ""),
        "figures": published.figures or None,
    }
