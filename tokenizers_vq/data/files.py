"""Which files are read: decided here alone, before anything is opened, and what is passed over has a name.

A path is taken literally where something lies there, and as a glob only where nothing does.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

EXTENSIONS = frozenset(
    f".{name}"
    for names in ("jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff", "ppm pgm pbm pnm jp2 j2k avif ico tga npy")
    for name in names.split()
)
_TARS = (".tar", ".tar.gz", ".tgz")
_FEW = 10  # pictures are figures of a data set where its tables hold this many times more
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""captions of a picture folder, as `imagefolder` names them"""

Kind = Literal["pictures", "parquet", "tar", "saved"]

_SYSTEM = frozenset(("lost+found", "__MACOSX", "$RECYCLE.BIN", "System Volume Information"))

_OWN = (
    {"recipe.yaml", "log.jsonl"},
    {"recipe.yaml", "data.json", "images"},
    {"recipe.yaml", "data.json", "checkpoints"},
    {"codes.json"},
    {"report.json", "report.html"},
    {"compare.json", "compare.html"},
    {"samples.json", "grid.png"},
)
"""names by which a folder that this package wrote is known: what lies in it is not data"""


class Found(NamedTuple):
    """The files of one kind below `root`, as relative paths in order, and in words what else lies there.

    `root` is a `Path`, or a `remote.Place` of a URL; `metadata`: files with captions of pictures.
    """

    kind: Kind
    root: Any
    names: list[str]
    left_out: str = ""
    metadata: tuple[str, ...] = ()
    sizes: Mapping[str, int] | None = None
    """bytes of each file at a URL"""


class Walked(NamedTuple):
    """What lies in a folder: paths by kind, what this package wrote, files with captions."""

    pictures: list[str]
    parquets: list[str]
    tars: list[str]
    others: list[str]
    own: Sequence[str] = ()
    metadata: Sequence[str] = ()


def readable(name: str) -> str:
    """A file's name as text that every terminal and file takes: what is no printable letter is written as its code."""
    if name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def kind_of(name: str) -> Kind | None:
    """pictures, parquet or tar by a file's ending, None for any other."""
    lower = name.lower().split("?")[0] if "://" in name else name.lower()
    if lower.endswith(".parquet"):
        return "parquet"
    if lower.endswith(_TARS):
        return "tar"
    return "pictures" if os.path.splitext(lower)[1] in EXTENSIONS else None  # noqa: PTH122 (speed)


@contextmanager
def parquet_file(path: Any) -> Iterator[Any]:
    """The `pyarrow.parquet.ParquetFile` at `path`, opened by Python: Arrow takes no name that is not UTF-8."""
    import pyarrow.parquet as pq

    with open_binary(path) as file:
        yield pq.ParquetFile(file)


def open_binary(path: Any) -> Any:
    """A file, by its path or URL."""
    if "://" in str(path):
        import fsspec

        return fsspec.open(str(path), "rb").open()
    return open(path, "rb")  # noqa: PTH123 (closed by the caller; a path as it is)


def local_path(text: str) -> Path:
    """The path that `text` names literally, else with `~` as the home folder."""
    path = Path(text)
    try:
        return path if path.exists() else path.expanduser()
    except (RuntimeError, OSError, ValueError):  # no such user, a name too long, a null character
        return path


class Peek(NamedTuple):
    """What has to be known of tables before they are opened: has a parquet file a column of images, and how many
    pictures, counted up to a number, are in a tar."""

    holds_images: Callable[[Any], bool]
    count_pictures: Callable[[Any, int], int]


def find(text: str, peek: Peek) -> Found | None:
    """The files that a folder, file or glob names; None where nothing lies there. Raises `ValueError` where
    files of several kinds could be meant, `FileNotFoundError` where a folder holds nothing that can be read.
    """
    path = local_path(text)
    if path.is_dir():
        return _in_folder(path, peek)
    if os.path.lexists(path):
        kind = kind_of(path.name)
        if kind is None or not path.is_file():
            raise ValueError(
                f"{readable(text)}: neither an image, a .parquet nor a .tar file; give one of these or a folder"
            )
        return Found(kind, path.parent, [path.name])
    matched = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []  # noqa: PTH207
    files = [name for name in matched if not Path(name).is_dir()]
    if matched and not files:
        raise ValueError(f"{readable(text)}: matches folders only; give one folder, or a glob of files")
    if not files:
        return None
    root = Path(os.path.commonpath([os.path.dirname(name) or "." for name in files]))  # noqa: PTH120 (str)
    names = [os.path.relpath(name, root).replace(os.sep, "/") for name in files]
    return of_one_kind(root, by_kind(names), peek)


def _listdir(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (names)
    except OSError:  # none there, or not for us to see
        return []


def missing(text: str) -> FileNotFoundError | None:
    """The error for a path at which nothing lies, None where `text` may be a name of the Hub, owner/name."""
    path = Path(text)
    written_as_path = path.is_absolute() or text.startswith((".", "~")) or text.endswith("/") or text.count("/") > 1
    inside = "/" in text and path.parent.is_dir()  # of owner/name only the name is wrong
    beside = _listdir(path.parent) if inside or "/" not in text else []
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.8)
    if written_as_path or "/" not in text or inside or glob.has_magic(text) or kind_of(path.name) or near:
        return FileNotFoundError(
            f"no data at {readable(text)}; give an existing folder, file or glob, owner/name of the Hub, or skimage"
            + (f" - did you mean '{readable(str(path.parent / near[0]))}'?" if near else "")
        )
    return None


def _in_folder(root: Path, peek: Peek) -> Found:
    if (root / "dataset_dict.json").is_file() or (
        (root / "state.json").is_file() and (root / "dataset_info.json").is_file()
    ):
        return Found("saved", root, [])
    walked = _walk(root)
    around = list(Path(os.path.realpath(root)).parents)[:2]
    if "" in walked.own or any(_is_own(_listdir(folder)) for folder in around):
        raise ValueError(f"{readable(str(root))} was written by this package (run, codes or report): it is not data")
    return of_one_kind(root, walked, peek)


def of_one_kind(root: Any, walked: Walked, peek: Peek) -> Found:
    """One kind of files out of all that lie there: tables of images before their figures, else nobody can know."""
    where, metadata = readable(str(root)), set(walked.metadata if walked.pictures else ())
    tables = _tables_of_images(root, [name for name in walked.parquets if name not in metadata], peek)
    pictures = _without_few_arrays(walked.pictures)
    found: dict[Kind, list[str]] = {"pictures": pictures, "parquet": tables, "tar": walked.tars}
    there: list[Kind] = [kind for kind, names in found.items() if names]
    if len(there) == 2 and "pictures" in there:
        [other] = [kind for kind in there if kind != "pictures"]
        if _FEW * len(pictures) <= _count(root, other, found[other], _FEW * len(pictures), peek):
            there = [other]
    if len(there) > 1:
        held = " and ".join(f"{len(found[kind])} {_SAID[kind]} ({readable(found[kind][0])})" for kind in there)
        raise ValueError(f"{where} holds {held}: give the path of one of them, or a glob")
    kind = there[0] if there else "parquet"
    names = found[kind] or walked.parquets  # without a column of images: the columns are asked for by name
    skipped = [name for group in (walked.pictures, walked.parquets, walked.tars) for name in group]
    rest = sorted({*skipped, *walked.others} - set(names) - metadata)
    left_out = _in_words(rest, walked.own)
    if not names:
        raise FileNotFoundError(
            f"no images, parquet or tar files in folder {where}"
            + (f" ({left_out})" if left_out else "; check the path")
        )
    for name in names if kind != "pictures" else ():
        if not (root / name).is_file():
            raise ValueError(f"{where}: {readable(name)} is not a readable file")
    return Found(kind, root, names, left_out, tuple(sorted(metadata)))


_SAID = {"pictures": "images", "parquet": "parquet files with images", "tar": "tar files"}


def _without_few_arrays(pictures: list[str]) -> list[str]:
    """Pictures without the arrays beside them that are statistics or features: a few of kind .npy among many others."""
    others = [name for name in pictures if not name.lower().endswith(".npy")]
    return others if _FEW * (len(pictures) - len(others)) <= len(others) else pictures


def _tables_of_images(root: Any, names: Sequence[str], peek: Peek) -> list[str]:
    """The parquet files that hold images, not indexes or statistics: one of each series of names is looked into."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join("#" if letter.isdigit() else letter for letter in name), []).append(name)
    return sorted(name for group in groups.values() if peek.holds_images(root / group[0]) for name in group)


def _count(root: Any, kind: Kind, names: Sequence[str], enough: int, peek: Peek) -> int:
    """About how many images the tables hold, counted until there are `enough`."""
    total = 0
    for name in names:
        if kind == "parquet":
            with parquet_file(root / name) as file:
                total += file.metadata.num_rows
        else:
            total += peek.count_pictures(root / name, enough)
        if total >= enough:
            break
    return total


def by_kind(names: Iterable[str]) -> Walked:
    """The files of a folder, sorted by what they are."""
    groups: dict[Kind | None, list[str]] = {"pictures": [], "parquet": [], "tar": [], None: []}
    for name in sorted(names):
        groups[kind_of(name)].append(name)
    metadata = [name for name in (*groups[None], *groups["parquet"]) if name.rsplit("/", 1)[-1] in METADATA]
    return Walked(groups["pictures"], groups["parquet"], groups["tar"], groups[None], metadata=metadata)


def _walk(root: Path) -> Walked:
    """All files below `root`, hidden ones passed over; a linked folder is read where it leads to another place.

    A link back into the folder, or to one around it, leads to what is read anyway: circles end there.
    """
    real_root = os.path.realpath(root)
    first = _walk_real(real_root, "", frozenset())
    files, own = list(first.files), list(first.own)
    for link in sorted(first.links):
        queue, seen = [link], set(first.places)
        while queue:
            name, place = queue.pop()
            if place not in seen and not f"{real_root}{os.sep}".startswith(f"{place.rstrip(os.sep)}{os.sep}"):
                inner = _walk_real(place, f"{name}/", frozenset(seen))
                seen |= inner.places
                files, own, queue = files + inner.files, own + inner.own, queue + inner.links
    return by_kind(files)._replace(own=own)


def _is_own(*names: Sequence[str]) -> bool:
    there = {name for group in names for name in group}
    return any(marks <= there for marks in _OWN)


class _Real(NamedTuple):
    """What lies below one place without following links; `links`: name and place that they lead to."""

    files: list[str]
    own: list[str]
    links: list[tuple[str, str]]
    places: set[str]


def _walk_real(place: str, prefix: str, seen: frozenset[str]) -> _Real:
    found = _Real([], [], [], set())
    for folder, folders, files in os.walk(place, onerror=_refuse):
        inside = prefix + folder[len(place) :].lstrip(os.sep).replace(os.sep, "/")
        inside += "/" if inside and not inside.endswith("/") else ""
        if folder in seen or _is_own(files, folders):
            if folder not in seen:
                found.own.append(inside.rstrip("/"))
            folders[:] = []
            continue
        found.places.add(folder)
        found.files.extend(inside + name for name in files if not name.startswith("."))
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SYSTEM]
        for name in folders:
            path = os.path.join(folder, name)  # noqa: PTH118 (speed)
            if os.path.islink(path):  # noqa: PTH114
                found.links.append((inside + name, os.path.realpath(path)))
    return found


def _refuse(error: OSError) -> None:
    raise OSError(f"{readable(str(error.filename))}: cannot be looked into: {error.strerror}") from None


def _in_words(names: Sequence[str], own: Sequence[str]) -> str:
    """What is left out, by ending, with a first name: `3 .heic, 1 without ending (a/IMG_1.HEIC ...)`."""
    endings = Counter(os.path.splitext(name.rsplit("/", 1)[-1])[1].lower() for name in names)  # noqa: PTH122
    parts = [f"{count} {readable(ending) or 'without ending'}" for ending, count in endings.most_common(6)]
    if len(endings) > 6:
        parts.append(f"{len(names) - sum(count for _, count in endings.most_common(6))} others")
    words = [f"{', '.join(parts)} ({readable(names[0])}{' ...' if len(names) > 1 else ''})"] if names else []
    if own:
        words.append(
            f"what this package wrote in {readable(own[0])}" + (f" and {len(own) - 1} more" if own[1:] else "")
        )
    return f"left out: {'; '.join(words)}" if words else ""
