"""Images at a URL that fsspec reads: s3://, gs://, hf://, http://, and whatever else it has a package for.

A folder there is listed once; what lies in it is decided as it is of a folder here.
"""

from __future__ import annotations

import glob
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers_vq.data.columns import LARGEST, Unreadable, too_large
from tokenizers_vq.data.files import Found, Peek, by_kind, kind_of, of_one_kind, readable

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_SECRETS = {
    "s3fs": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile of ~/.aws",
    "gcsfs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "hf": "HF_TOKEN, or `hf auth login`",
}
_REFUSED = (
    "credential",
    "forbidden",
    "access denied",
    "accessdenied",
    "403",
    "401",
    "unauthorized",
    "invalidaccesskey",
)
_ABSENT = ("nosuchbucket", "bucket does not exist", "404", "not found", "no such")


def is_url(text: str) -> bool:
    """Whether `text` is a URL rather than a path."""
    return "://" in text


class Place:
    """A file or folder at a URL, as far as it is used like a `Path`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        return posixpath.splitext(self.url)[1]

    def absolute(self) -> Place:
        """Itself."""
        return self

    def is_file(self) -> bool:
        """Whether a file is there."""
        with told(self.url):
            system, path = _system(self.url)
            return bool(system.isfile(path))

    def open(self, mode: str = "r", **options: Any) -> Any:
        """The file."""
        with told(self.url):
            system, path = _system(self.url)
            return system.open(path, mode, **options)


def find(url: str, peek: Peek) -> Found:
    """The files that a URL of a folder, of a picture, or a glob names.

    Raises as `files.find`, and in one line where the package for the URL, the bucket or the right to read it is
    missing.
    """
    with told(url):
        system, path = _system(url)
        system.invalidate_cache()
        if kind_of(url) == "pictures" and not glob.has_magic(path):
            root, names = Place(url.rpartition("/")[0]), [url.rpartition("/")[2]]
            return Found("pictures", root, names, sizes={names[0]: int(system.info(path).get("size") or -1)})
        if glob.has_magic(path):
            listed = system.glob(path, detail=True)
            base = posixpath.dirname(path[: next(i for i, letter in enumerate(path) if letter in "*?[")])
        else:
            listed, base = system.find(path, detail=True), path.rstrip("/")
            if not listed and not system.exists(path):
                raise FileNotFoundError(f"{url}: no such bucket or folder")
        found = {
            name[len(base) :].lstrip("/"): int(info.get("size") or -1)
            for name, info in listed.items()
            if info.get("type") != "directory"
        }
    shown = {name: size for name, size in found.items() if name and not _is_hidden(name)}
    if "codes.json" in shown or "report.json" in shown:
        raise ValueError(f"{readable(url)} was written by this package (run, codes or report): it is no data")
    root = Place(system.unstrip_protocol(base))
    return of_one_kind(root, by_kind(shown), peek)._replace(sizes=shown)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def fetch(root: str, names: Sequence[str], sizes: Sequence[int]) -> Iterator[bytes | Unreadable]:
    """The files below a folder, in order; what is not there, or too large, says so.

    Raises `ValueError` where the place cannot be reached: images that a network loses are not broken.
    """
    with told(root):
        system, base = _system(root)
        for name, size in zip(names, sizes, strict=True):
            if size > LARGEST:
                yield Unreadable(too_large(size))
                continue
            try:
                yield system.cat_file(f"{base.rstrip('/')}/{name}")
            except FileNotFoundError:
                yield Unreadable("it is not there any more")


@contextmanager
def told(url: str) -> Iterator[None]:
    """What stands in the way of a URL, in one line: a package, a bucket, a right, the network."""
    try:
        yield
    except Exception as error:
        if (found := explained(url, error)) is not None:
            raise found from None
        if isinstance(error, ValueError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{readable(url)}: cannot be reached: {reason}") from None


def explained(url: str, error: Exception) -> Exception | None:
    """The error with its remedy, in one line: a missing package, bucket or right; None for anything else."""
    protocol, where = url.partition("://")[0], readable(url)
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, ValueError):
        if "Protocol not known" in text:
            return ValueError(f"{where}: nothing here reads {protocol}://; give a path, or another URL")
        return None
    if isinstance(error, ImportError):
        package = _PACKAGES.get(protocol)
        remedy = f"pip install {package}" if package else text
        return ValueError(f"{where}: {protocol}:// needs a package that is not installed: {remedy}")
    kind = f"{type(error).__name__} {text}".lower()
    if isinstance(error, PermissionError) or any(word in kind for word in _REFUSED):
        secrets = _SECRETS.get(_PACKAGES.get(protocol, protocol), "the credentials that it asks for")
        return ValueError(f"{where}: may not be read ({text}): set {secrets}")
    if isinstance(error, FileNotFoundError) or any(word in kind for word in _ABSENT):
        return FileNotFoundError(f"no data at {where}: no such bucket, folder or file")
    return None


def _system(url: str) -> tuple[Any, str]:
    """The file system and the path there; asked for anew in each process, for its connections do not outlive a fork."""
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    return system, str(path)
