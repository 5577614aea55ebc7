"""Which columns of a table hold the image, its class, its captions and its name; rows to items."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tokenizers_vq.config import nearest
from tokenizers_vq.data.files import readable

NONE = "none"
"""the value of `label_column` and `caption_column` that reads no classes, no captions"""

LARGEST = 2**28
"""bytes of a picture's file beyond which it is passed over, named: a table or tar of a few KB can claim any size"""

_LABELS = ("label", "labels", "cls", "class", "fine_label")
CAPTIONS = ("caption", "captions", "text")
_STRINGS = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")
_LARGEST = 2**62  # beyond any number of classes, and exact in every type


def too_large(size: int) -> str:
    """Why a picture's file of `size` bytes is not read."""
    return f"a file of {size:,} bytes, at most {LARGEST:,} are read"


class Unreadable(NamedTuple):
    """Stands where an item has no picture to decode, and says why."""

    reason: str


class Item(NamedTuple):
    """One undecoded image: a path, a file's bytes or an array; its name; its class or -1; all its captions."""

    image: str | bytes | np.ndarray | Unreadable
    key: str
    label: int
    captions: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    """numbers of its classes in the further columns of them"""


class Columns:
    """What the columns of `features` (of `datasets`) are; turns rows into items.

    `image`, `label`, `captions` are the columns that are asked for, `classes` further ones of classes; `roots` the
    folders in which files that a table names may lie, the first of them for relative names. Raises `ValueError` in one
    line where a column is not there, or could be one of several, or cannot be what it is meant for.
    """

    def __init__(
        self,
        features: Mapping[str, Any],
        where: str,
        *,
        image: str | None = None,
        label: str | None = None,
        captions: str | None = None,
        roots: Sequence[str] = (),
        classes: Sequence[str] = (),
    ) -> None:
        import datasets

        self.where, self.roots = where, [os.path.normpath(root) for root in roots]
        self.names = tuple(features)
        self.image = _image_column(features, image, where)
        self.label = _label_column(features, label, where)
        self.captions = caption_column(
            [name for name, feature in features.items() if _holds_texts(feature)],
            captions,
            where,
            list(features),
        )
        self.key = next(
            (name for name in ("__key__", "key") if _dtype(features.get(name)).startswith(("int", "uint", "string"))),
            None,
        )
        feature = features.get(self.label) if self.label else None
        self.label_names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
        self.label_is_text = _dtype(feature) in _STRINGS
        self.numbers: dict[Any, int] | None = None  # for classes that are written as text
        self.use_path = False
        # A further column of classes is read as the label of the same table.
        self.further = {name: Columns(features, where, image=image, label=name, captions=NONE) for name in classes}
        used = (self.image, self.label, self.captions, self.key, *self.further)
        self.used = list(dict.fromkeys(name for name in used if name is not None))

    def item(self, row: Mapping[str, Any], index: int) -> Item:
        """Raises `ValueError` for a label that is no class."""
        image = row[self.image]
        path = image.get("path") if isinstance(image, dict) else None
        key = str(row[self.key]) if self.key else readable(path) if self.use_path and path else f"{index:08d}"
        label = self.number(row[self.label], f"row {index}") if self.label else -1
        classes = tuple(one.number(row[name], f"row {index}") for name, one in self.further.items())
        picture = self._picture(image) if image is not None or not row.get("unread") else Unreadable(row["unread"])
        return Item(picture, key, label, _texts(row[self.captions]) if self.captions else (), classes)

    def _picture(self, image: Any) -> str | bytes | Unreadable:
        if isinstance(image, dict):
            content, path = image.get("bytes"), image.get("path")
            image = path if content is None else content
        if image is None:
            return Unreadable("no picture, the row holds null")
        if not isinstance(image, str):
            return image if len(image) <= LARGEST else Unreadable(too_large(len(image)))
        path = os.path.normpath(os.path.join(self.roots[0] if self.roots else "", image))  # noqa: PTH118 (text)
        if not any(path.startswith(f"{root}{os.sep}") for root in self.roots):
            return Unreadable(f"names a file outside the data's folder, {readable(image)}, which is not followed")
        return path

    def number(self, label: Any, row: str = "a row") -> int:
        """The class as a number. Raises `ValueError` for a label that is none; `row` says where it stands."""
        if self.numbers is not None and label in self.numbers:
            return self.numbers[label]
        whole = isinstance(label, (bool, int)) or (isinstance(label, float) and math.isfinite(label) and label % 1 == 0)
        most = len(self.label_names) if self.label_names else _LARGEST
        if not whole or not -1 <= label < (most if self.numbers is None else 0):
            raise ValueError(self.bad_label(label, row))
        return int(label)

    def bad_label(self, label: Any, row: str) -> str:
        """One line about a label that is no class; `row` says where it stands."""
        what = "null" if label is None else readable(repr(label))[:60]
        return (
            f"{self.where}: {row} of column '{self.label}' holds {what}; a label is one whole number from 0 "
            "(-1 for none) or a name: put it right, or read without classes by label_column=none"
        )

    def first_bad_label(self, column: Any) -> int | None:
        """The first row of an Arrow column of labels that is no class, None where all are."""
        import pyarrow as pa
        import pyarrow.compute as pc

        bad = np.asarray(pc.is_null(column))
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            values = np.asarray(pc.fill_null(column, 0))
            most = len(self.label_names) if self.label_names else _LARGEST
            bad |= (values < -1) | (values >= most) | ~np.isfinite(values) | (values != np.floor(values))
        return int(bad.argmax()) if bad.any() else None

    def number_texts(self, names: Sequence[str]) -> None:
        """Classes that are text get their places among the sorted `names` as numbers."""
        self.label_names = tuple(sorted(set(names)))
        self.numbers = {name: number for number, name in enumerate(self.label_names)}

    def number_as_in_all_splits(self, names: Sequence[str]) -> None:
        """Numbers that have names are changed to their names' places among these and `names`; none: nothing is."""
        own = self.label_names
        if own is not None and names:
            self.number_texts([*own, *names])
            places: dict[str, int] = self.numbers or {}
            self.numbers = {number: places[name] for number, name in enumerate(own)}

    @property
    def class_names(self) -> dict[str, tuple[str, ...] | None]:
        """Names of the classes in the further columns of them, None for numbers alone."""
        return {name: one.label_names for name, one in self.further.items()}

    def refuse_other(self, other: Columns, mine: str, its: str) -> None:
        """Raises `ValueError` where `other`, the columns of the file `its`, are not these, those of the file `mine`."""
        remedy = "name the column or none, or give a glob of files that are alike"
        for what, here, there in (
            ("images are", self.image, other.image),
            ("classes are", self.label, other.label),
            ("captions are", self.captions, other.captions),
            ("keys are", self.key, other.key),
        ):
            if here != there:
                one, two = (f"in column '{name}' of" if name else "in no column of" for name in (here, there))
                raise ValueError(f"{self.where}: the {what} {one} {mine}, but {two} {its}; {remedy}")
        if self.label_is_text != other.label_is_text or self.label_names != other.label_names:
            raise ValueError(
                f"{self.where}: column '{self.label}' of {its} does not name classes as {mine} does; {remedy}"
            )
        for column, further in self.further.items():
            further.refuse_other(other.further[column], mine, its)


def holds_images(features: Mapping[str, Any], wanted: str | None) -> bool:
    """Whether a table with these columns can be the data, not an index or statistics beside them."""
    return wanted in features if wanted is not None else bool(_pictures(features))


def caption_column(
    textual: Sequence[str], wanted: str | None, where: str, every: Sequence[str] | None = None
) -> str | None:
    """The column of captions among the `textual` ones, None for no captions.

    Raises `ValueError` where the wanted one is none of them; `every` are all the columns there.
    """
    if wanted == NONE:
        return None
    if wanted is None:
        return next((name for known in CAPTIONS for name in textual if name.lower() == known), None)
    if wanted not in textual:
        if wanted in (every or ()):
            raise ValueError(f"{where}: column '{wanted}' holds no text; set caption_column to another, or to none")
        raise ValueError(f"{where}: no column '{wanted}' of captions; its columns: {', '.join(every or textual)}")
    return wanted


def _pictures(features: Mapping[str, Any]) -> list[str]:
    import datasets

    return [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Image)
        or (isinstance(feature, dict) and _dtype(feature.get("bytes")) in _BYTES)
        or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})  # all of them named, none held
        or (name.lower() == "image" and _dtype(feature) in _BYTES)
    ]


def _image_column(features: Mapping[str, Any], wanted: str | None, where: str) -> str:
    pictures = _pictures(features)
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"{where}: no column '{wanted}'{nearest(wanted, features)}")
        if wanted not in pictures and _dtype(features[wanted]) not in (*_BYTES, *_STRINGS):
            raise ValueError(f"{where}: column '{wanted}' holds {features[wanted]}, not images; set image_column")
        return wanted
    if not pictures:
        raise ValueError(f"{where}: no column holds images; set image_column to one of: {', '.join(features)}")
    chosen = [name for name in pictures if name.lower() == "image"] if len(pictures) > 1 else pictures
    if len(chosen) != 1:
        raise ValueError(f"{where}: several columns hold images: {', '.join(pictures)}; set image_column to one")
    return chosen[0]


def _label_column(features: Mapping[str, Any], wanted: str | None, where: str) -> str | None:
    import datasets

    if wanted == NONE:
        return None
    if wanted is not None and wanted not in features:
        raise ValueError(f"{where}: no column '{wanted}'{nearest(wanted, features)}")
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    cased = {name.lower(): name for name in reversed(list(features))} | {name: name for name in features}
    named = [cased[name] for name in _LABELS if name in cased and _dtype(features[cased[name]]) != "null"]
    # several of unknown names, such as forty attributes of a face, are no class of the image
    chosen = wanted or next(iter([name for name in named if name in classes] + named), None)
    chosen = chosen or (classes[0] if len(classes) == 1 else None)
    if chosen is None:
        return None
    dtype = _dtype(features[chosen])
    if dtype in _STRINGS or dtype.startswith(("int", "uint", "float", "double", "bool")):
        return chosen
    raise ValueError(
        f"{where}: row 0 of column '{chosen}' holds {features[chosen]}; a label is one whole number or a name: "
        "set label_column to another column, or to none"
    )


def _dtype(feature: Any) -> str:
    import datasets

    return str(feature.dtype) if isinstance(feature, (datasets.Value, datasets.ClassLabel)) else ""


def _holds_texts(feature: Any) -> bool:
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    return _dtype(feature) in _STRINGS or (not isinstance(inner, dict) and _dtype(inner) in _STRINGS)


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(text for text in ([value] if isinstance(value, str) else value) if text)
