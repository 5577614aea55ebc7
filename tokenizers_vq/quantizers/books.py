"""What quantizers of several levels, groups or scales share: their books, each of which is a quantizer's config.

Configs of before they had books are read too: their fields were those of one `VectorQuantizer` for all levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Discriminator, Field, Tag
from torch import nn

from tokenizers_vq.config import ConfigError
from tokenizers_vq.devices import without_memory
from tokenizers_vq.quantizers.base import Quantizer, QuantizerFields, Remedy, copy_folded
from tokenizers_vq.quantizers.bsq import BsqQuantizerConfig
from tokenizers_vq.quantizers.diveq import DiveqQuantizerConfig
from tokenizers_vq.quantizers.fsq import FsqQuantizerConfig
from tokenizers_vq.quantizers.gumbel import GumbelQuantizerConfig
from tokenizers_vq.quantizers.ibq import IbqQuantizerConfig
from tokenizers_vq.quantizers.lfq import LfqQuantizerConfig
from tokenizers_vq.quantizers.simvq import SimVqQuantizerConfig
from tokenizers_vq.quantizers.vector import VectorQuantizerConfig
from tokenizers_vq.quantizers.vqbridge import VqBridgeQuantizerConfig

Book = Annotated[
    VectorQuantizerConfig
    | GumbelQuantizerConfig
    | FsqQuantizerConfig
    | LfqQuantizerConfig
    | BsqQuantizerConfig
    | IbqQuantizerConfig
    | SimVqQuantizerConfig
    | DiveqQuantizerConfig
    | VqBridgeQuantizerConfig,
    Field(discriminator="kind"),
]
"""a quantizer of one code at a position; a new one is imported and named here"""


MOST = 256
"""most levels or groups"""


def _number(value: Any) -> str:
    return "several" if isinstance(value, (list, tuple)) else "one"


Books = Annotated[
    Annotated[Book, Tag("one")] | Annotated[tuple[Book, ...], Tag("several")],
    Discriminator(_number),
]
"""one quantizer's config for all, or one for each"""

_MOVED = (
    "num_codes",
    "dim",
    "distance",
    "codebook",
    "beta",
    "decay",
    "epsilon",
    "revive_after",
    "kmeans_batches",
)
"""fields that stood beside the others before there were books"""


class BooksConfig(QuantizerFields):
    """Base of the configs of quantizers that hold books."""

    book: Books
    """quantizer of each level (group, scale), or a list with one for each; any kind of one code at a position"""

    def _count(self) -> tuple[int, str]:
        """How many books there are, and what they are called; the field that says it is bounded by `MOST`."""
        raise NotImplementedError

    @property
    def books(self) -> tuple[Any, ...]:
        """The config of each level (group, scale)."""
        return self.book if isinstance(self.book, tuple) else (self.book,) * self._count()[0]

    def _check_books(self, as_wide_as_codes: bool, one_code: bool = True) -> None:
        """Raises `ConfigError` for another number of books, and for books that cannot stand beside one another."""
        count, what = self._count()
        if len(self.books) != count:
            raise ConfigError(("book",), f"{len(self.books)} books for {count} {what}: give one for each, or one")
        with without_memory():
            built = [book.build() for book in dict.fromkeys(self.books)]
        for book in built:
            if one_code and book.depth > 1:
                raise ConfigError(
                    ("book",),
                    f"{what} take books of one code at a position, this one gives {book.depth}: raise code_bits",
                )
            if book.depth != built[0].depth:
                depths = sorted({book.depth for book in built})
                raise ConfigError(("book",), f"{what} take as many codes at a position, these {depths}")
            if as_wide_as_codes and (book.in_dim != book.dim or book.dim != built[0].dim):
                widths = sorted({width for book in built for width in (book.in_dim, book.dim)})
                raise ConfigError(("book",), f"{what} take and give vectors of one width, these are {widths} wide")

    @property
    def codebook_size(self) -> int | None:
        """Codes of the smallest book; None where one does not store its codes."""
        sizes = [book.codebook_size for book in self.books]
        return None if None in sizes else min(sizes)

    def folded(self) -> QuantizerFields:
        """With the books' own."""
        books = tuple(book.folded() for book in self.books)
        if books == self.books:
            return self
        return self.replace(book=books if isinstance(self.book, tuple) else books[0])

    def frozen(self) -> str | None:
        """The reason of the first book that has one."""
        return next((reason for book in self.books if (reason := book.frozen())), None)

    def remedies(self) -> list[Remedy]:
        """The books' own; of several books those that all of them have."""
        if not isinstance(self.book, tuple):
            prefixes, common = ["book"], self.book.remedies()
        else:
            prefixes = [f"book.{number}" for number in range(len(self.book))]
            first, *others = (book.remedies() for book in self.book)
            common = [remedy for remedy in first if all(remedy in other for other in others)]
        return [
            Remedy(tuple(f"{prefix}.{field}" for prefix in prefixes for field in remedy.fields), remedy.why)
            for remedy in common
        ]

    def build_books(self, shared: bool = False) -> nn.ModuleList:
        """The quantizers, of a shared book one."""
        return nn.ModuleList(book.build() for book in (self.books[:1] if shared else self.books))


def move_into_book(data: Any, count: int, what: str, defaults: Mapping[str, Any], through_norm: bool = True) -> Any:
    """A config's data with the fields of before there were books in `book`; where there is none, `defaults` beside.

    Fields that stand beside a `book` go before its own, but not before those of one without a kind, which says no more
    than what differs. `through_norm`: the cosine form's estimator of before. Raises `ConfigError` where `num_codes`
    lists another number.
    """
    if not isinstance(data, Mapping):
        return data
    moved = {name: data[name] for name in _MOVED if name in data}
    given, differing = data.get("book", {}), {}
    if isinstance(given, Mapping) and "kind" not in given:
        given, differing = {"kind": "vector", **defaults}, given
    elif not moved:
        return data
    if moved.get("distance") == "cosine" and not through_norm:
        moved["gradient_through_norm"] = False
    sizes = moved.pop("num_codes") if _number(moved.get("num_codes")) == "several" else None
    if sizes is not None and len(sizes) != count:
        raise ConfigError(("num_codes",), f"{len(sizes)} numbers for {count} {what}")
    several = sizes is not None or _number(given) == "several"
    books = list(given) if _number(given) == "several" else [given] * (1 if sizes is None else count)
    if not all(isinstance(book, (Mapping, QuantizerFields)) for book in books):
        return data
    each = [{}] * len(books) if sizes is None else [{"num_codes": size} for size in sizes]
    if len(each) != len(books):
        return data
    joined = [{**dict(book), **moved, **own, **differing} for book, own in zip(books, each, strict=True)]
    rest = {name: value for name, value in data.items() if name not in _MOVED}
    return {**rest, "book": tuple(joined) if several else joined[0]}


def moved_back(books: Any, defaults: Mapping[str, Any], through_norm: bool = True) -> dict[str, Any] | None:
    """The inverse of `move_into_book`, without fields at their `defaults`; None where those of before cannot say it.

    The fingerprint of a tokenizer that could be described before is taken of these, so that it stays what it was.
    """
    plain = VectorQuantizerConfig()
    found: list[dict[str, Any]] = []
    for book in books if isinstance(books, tuple) else (books,):
        if not isinstance(book, VectorQuantizerConfig):
            return None
        free = book.gradient_through_norm  # of the euclidean form, where it decides nothing
        was = plain.replace(gradient_through_norm=through_norm if book.distance == "cosine" else free)
        unsaid = [name for name in type(book).model_fields if name not in _MOVED]
        if any(getattr(book, name) != getattr(was, name) for name in unsaid):
            return None
        found.append({name: getattr(book, name) for name in _MOVED})
    sizes = tuple(fields.pop("num_codes") for fields in found)
    if any(fields != found[0] for fields in found):
        return None
    given = {"num_codes": list(sizes) if isinstance(books, tuple) else sizes[0], **found[0]}
    return {name: value for name, value in given.items() if value != defaults.get(name, getattr(plain, name))}


class BookedQuantizer(Quantizer):
    """Base of quantizers that hold books: what is of theirs."""

    config: Any

    def folded(self) -> Quantizer:
        """With each book folded."""
        config = self.config.folded()
        if config is self.config:
            return self
        made = config.build()
        copy_folded(self, made)
        return made.to(next(self.parameters()).device).train(self.training)


def quantizers_in(books: nn.ModuleList) -> list[Quantizer]:
    """The modules of a list of books, as what they are."""
    return [book for book in books if isinstance(book, Quantizer)]


def mean_losses(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Each loss' mean over the books that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([part[name] for part in parts if name in part]).mean() for name in names}
