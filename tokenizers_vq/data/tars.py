"""Samples of webdataset files: members of a tar whose names differ in their endings belong to one image.

A name's key ends at its first dot, as webdataset has it (`0001.jpg`, `0001.cls`, `0001.mask.png`), or at its last one
where names have dots of their own (`IMG.2019.05.jpg`).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers_vq.config import nearest
from tokenizers_vq.data.columns import CAPTIONS, LARGEST, NONE, too_large
from tokenizers_vq.data.files import EXTENSIONS, open_binary, readable
from tokenizers_vq.data.splits import role

if TYPE_CHECKING:
    from tokenizers_vq.data.config import DataConfig

_LOOKED_AT = 4000  # members by which the reading of a tar's names is decided
_LABELS = ("cls", "label", "class")
_TEXTS = ("txt", *CAPTIONS)


class UnreadableTar(ValueError):  # noqa: N818 (names what cannot be read, not the act)
    """A tar that is damaged, or whose members do not say what is what; one line with its name."""


class Plan(NamedTuple):
    """How members make samples: `picture`, `label`, `caption` are the endings that hold them."""

    dotted: bool
    picture: str | None
    label: str | None
    whole: bool
    caption: str | None
    absent: tuple[str, ...] = ()  # endings of labels and captions that were looked for in vain


class Member(NamedTuple):
    """A file in a tar: its name, its size, and what reads it (valid until the next one is asked for)."""

    name: str
    size: int
    read: Any
    sparse: bool


def members(path: str) -> Iterator[Member]:
    """The files in a tar in order, hidden ones passed over. Raises `UnreadableTar` where it is damaged."""
    try:
        with open_binary(path) as file, _unpacked(file) as inside, _tar(_Bounded(inside)) as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # they would pile up, a kilobyte each
                name = info.name.removeprefix("./")
                if info.isreg() and not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
                    yield Member(name, info.size, partial(_read, tar, info), info.issparse())
            inside.seek(tar.offset)
            if len(inside.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends without its end mark, cut off: copy or pack it again")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableTar(f"{readable(path)}: cannot be read as webdataset: {reason}") from None


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    return b"" if file is None else file.read()


def _tar(file: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r:")


class _Bounded:
    """A file of which nothing larger than a picture may be is read at once: headers of a tar claim any size."""

    def __init__(self, file: Any) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > LARGEST + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def _unpacked(file: Any) -> Any:
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    return lzma.LZMAFile(file) if head.startswith(b"\xfd7zXZ") else file


def count_pictures(path: Any, most: int) -> int:
    """How many pictures a tar holds, counted up to `most`."""
    return sum(1 for _ in islice((m for m in members(str(path)) if _is_picture(_last(m.name)[1])), most))


def _first(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    base, _, ending = file.partition(".")
    return f"{folder}{slash}{base}", ending.lower()


def _last(name: str) -> tuple[str, str]:
    base, dot, ending = name.rpartition(".")
    return (base, ending.lower()) if dot and "/" not in ending else (name, "")


def _is_picture(ending: str) -> bool:
    return f".{ending.rpartition('.')[2]}" in EXTENSIONS


def plan(path: str, config: DataConfig) -> Plan:
    """How the samples of the tar at `path` are read, decided by its first members.

    Raises `UnreadableTar` where a picture could be one of several, where an ending that is asked for is not there, and
    where folders inside name splits.
    """
    where = readable(path)
    names: list[str] = []
    classes: str | None = None
    labels = _LABELS if config.label_column is None else (config.label_column,)
    for member in islice(members(path), _LOOKED_AT):
        names.append(member.name)
        if classes is None and _last(member.name)[1] in labels and member.size < 1000:
            classes = member.read().decode("utf-8", "replace").strip()
    _refuse_splits(names, where)
    if not names or all(name.lower().endswith((".tar", ".zip")) for name in names):
        raise UnreadableTar(f"{where}: holds {'archives: unpack it and give the folder' if names else 'no images'}")
    pictures = [name for name in names if _is_picture(_last(name)[1])]
    dotted = len({_first(name)[1] for name in pictures}) > len({_first(name)[0] for name in pictures})
    if config.image_column is not None and "." in config.image_column:
        dotted = False
    split = _last if dotted else _first
    endings = Counter(split(name)[1] for name in names)
    picture = config.image_column
    if picture is not None and picture not in endings:
        raise UnreadableTar(f"{where}: no column '{picture}'{nearest(picture, endings)}")
    if picture is None and not dotted:
        _refuse_several(pictures, where)
    label = _ending(config.label_column, labels, endings, where)
    caption = _ending(config.caption_column, _TEXTS, endings, where)
    absent = [*(labels if label is None and config.label_column is None else ())]
    absent += _TEXTS if caption is None and config.caption_column is None else ()
    return Plan(dotted, picture, label, re.fullmatch(r"-?\d+", classes or "0") is not None, caption, tuple(absent))


def _ending(wanted: str | None, known: Sequence[str], endings: Counter[str], where: str) -> str | None:
    if wanted == NONE:
        return None
    if wanted is not None and wanted not in endings:
        raise UnreadableTar(f"{where}: no column '{wanted}'{nearest(wanted, endings)}")
    return wanted or next((ending for ending in known if ending in endings), None)


def _refuse_splits(names: Sequence[str], where: str) -> None:
    for level in range(3):
        at = {parts[level] for name in names if len(parts := name.split("/")[:-1]) > level}
        spoken = sorted(name for name in at if role(name) is not None)
        if len({role(name) for name in spoken}) > 1:
            raise UnreadableTar(f"{where}: holds the folders {', '.join(spoken)}: unpack it and give the folder")


def _refuse_several(pictures: Sequence[str], where: str) -> None:
    samples: dict[str, list[str]] = {}
    for name in pictures:
        key, ending = _first(name)
        samples.setdefault(key, []).append(ending)
    for key, endings in samples.items():
        plain = [ending for ending in endings if "." not in ending]
        if len(endings) > 1 and len(plain) != 1:
            held = ", ".join(sorted(set(endings)))
            raise UnreadableTar(
                f"{where}: several pictures belong to {readable(key)}: {held}; set image_column to one ending"
            )
    beside = Counter(ending for endings in samples.values() if len(endings) > 1 for ending in endings if "." in ending)
    for ending, count in beside.items():
        if 2 * count <= len(samples):
            raise UnreadableTar(
                f"{where}: pictures ending in .{ending} lie beside {count} of {len(samples)} others: companions, or "
                "images of their own? set image_column to the ending of the images, or rename them without dots"
            )


def read_samples(tars: Sequence[str], stamps: Sequence[str], how: Plan) -> Iterator[dict[str, Any]]:
    """Rows of tars: `__key__`, `image` (bytes and name, or null), `unread` (why it is null), `label`, `captions`.

    `stamps` tell two states of a file apart for caches. Raises `UnreadableTar` for a damaged tar, or a label that is
    no class.
    """
    for path in tars:
        key, sample, ended = "", dict[str, Any](), set[int]()
        for member in members(path):
            base, ending = (_last if how.dotted else _first)(member.name)
            if base != key and sample:
                yield _row(key, sample, how)
                sample = {}
                ended.add(hash(key))
            if base != key and hash(base) in ended:
                raise UnreadableTar(
                    f"{readable(path)}: {readable(member.name)} lies apart from the other files of its name, of which "
                    "it would be lost: pack it again with the files sorted by name"
                )
            key = base
            _add(sample, ending, member, how, path)
        if sample:
            yield _row(key, sample, how)


def _add(sample: dict[str, Any], ending: str, member: Member, how: Plan, path: str) -> None:
    """Take from a member what its ending says it is. Raises `UnreadableTar` for what stands twice."""
    place = f"{readable(path)}: {readable(member.name)}"
    if _is_picture(ending) if how.picture is None else ending == how.picture:
        plain = "." not in ending
        if "image" in sample and how.picture is None and plain == sample["plain"]:
            raise UnreadableTar(f"{place}: a second picture of its name; set image_column to one ending, or rename it")
        if "image" not in sample or plain:
            fits = member.size <= LARGEST and not member.sparse
            sample["image"] = {"bytes": member.read(), "path": readable(member.name)} if fits else None
            sample["unread"] = None if fits else too_large(member.size)
            sample["plain"] = plain
    elif ending == how.label and member.size < 100_000:
        text = member.read().decode("utf-8", "replace").strip()
        if how.whole and re.fullmatch(r"-?\d{1,18}", text) is None:
            raise UnreadableTar(
                f"{place} holds '{readable(text)[:60]}'; a label is one whole number, as the first ones are: put it "
                "right, or read without classes by label_column=none"
            )
        sample["label"] = int(text) if how.whole else text
    elif ending == how.caption and member.size < 1_000_000:
        sample["captions"] = [text] if (text := member.read().decode("utf-8", "replace").strip()) else []
    elif ending in how.absent:
        raise UnreadableTar(
            f"{place}: the first images have no .{ending}: give label_column={ending} or caption_column={ending} where "
            "all files have one, else none"
        )
    elif ending in ("json", *_LABELS, *_TEXTS) or member.name.lower().endswith((".heic", ".heif", ".jxl")):
        sample.setdefault("unread", f"no picture of a kind that can be read, only {readable(member.name)}")


def _row(key: str, sample: dict[str, Any], how: Plan) -> dict[str, Any]:
    return {
        "__key__": readable(key),
        "image": sample.get("image"),
        "unread": sample.get("unread") if "image" in sample else sample.get("unread", "no picture"),
        **({"label": sample.get("label")} if how.label else {}),
        **({"captions": sample.get("captions", [])} if how.caption else {}),
    }


def features(how: Plan) -> Any:
    """The `datasets.Features` of what `read_samples` yields."""
    import datasets

    text = datasets.Value("string")
    return datasets.Features(
        {
            "__key__": text,
            "image": datasets.Image(decode=False),
            "unread": text,
            **({"label": datasets.Value("int64") if how.whole else text} if how.label else {}),
            **({"captions": [text]} if how.caption else {}),
        }
    )
