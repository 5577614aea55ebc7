"""Which split a folder or file belongs to: by whole words of its name, in any letter case, or refused by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

EVERYTHING = "all"
"""the value of `data.split` that reads all there is, whatever folders and files are called"""

_ROLES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
}
_PICTURES = frozenset(("image", "images", "img", "imgs", "jpegimages", "pictures", "photos"))
_ORDER = {"train": 0, "validation": 1, "test": 2}
_PLAIN = frozenset(
    word
    for words in ("image images img imgs picture pictures photo", "photos set data dataset split files folder jpg png")
    for word in words.split()
)


class NoSplitError(ValueError):
    """The data have no such split; the message names those that they have."""


class Part(NamedTuple):
    """One picture of a split: its path relative to the data's folder, and the folders that may name its class."""

    name: str
    classes: tuple[str, ...]


class Splits(NamedTuple):
    """`parts`: split -> what is in it (the only split may be called None); `beside`: what is in none of them."""

    parts: dict[str | None, list[Part]]
    beside: list[str]


def _words(name: str) -> list[str]:
    """`train2017`, `Training_set`, `testA`: the words in lower case."""
    return [word.lower() for run in re.findall(r"[^\W\d_]+", name) for word in re.split(r"(?<=[a-z])(?=[A-Z])", run)]


def _roles(name: str) -> list[str]:
    return list(dict.fromkeys(_ROLES[word] for word in _words(name) if word in _ROLES))


def role(name: str | None) -> str | None:
    """train, test or validation where `name` says one of them and nothing else of weight, as `Train`, `val2017` do."""
    roles = _roles(name or "")
    rest = [word for word in _words(name or "") if word not in _ROLES and word not in _PLAIN]
    return roles[0] if len(roles) == 1 and not rest else None


def matching(splits: Iterable[str | None], wanted: str) -> list[str | None]:
    """The splits that `wanted` may mean: of its very name, else in another letter case, else of its role."""
    names = list(splits)
    for alike in (
        lambda name: name == wanted,
        lambda name: name is not None and name.lower() == wanted.lower(),
        lambda name: role(name) is not None and role(name) == role(wanted),
    ):
        if found := [name for name in names if alike(name)]:
            return found
    return []


def choose(splits: Iterable[str | None], wanted: str | None, prefer: Sequence[str], where: str) -> str | None:
    """The split that is wanted, else the first role of `prefer` that is there, else the only one.

    Raises `NoSplitError` where there is no such split, `ValueError` where more than one could be meant.
    """
    names = list(splits)
    have = ", ".join(str(name) for name in names)
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is not None:
        found = matching(names, wanted)
        if not found:
            raise NoSplitError(f"{where}: no split '{wanted}'; it has: {have}")
    else:
        found = next((same for one in prefer if (same := matching(names, one))), [])
        if not found:
            raise ValueError(f"{where}: none of the splits {have} is meant for this; give the split")
    if len(found) > 1:
        raise ValueError(f"{where}: split could be each of {', '.join(map(str, found))}; give one of them, or its path")
    return found[0]


def of_pictures(names: Sequence[str], wanted: str | None, where: str) -> Splits:
    """Splits of a folder by its sub-folders' names; `names` are relative paths, with `/` between folders.

    The first or second level below what all share may name splits (`train/cat`, `cat/train`). Where only some of the
    folders do, `wanted` settles it, else `ValueError` names the others.
    """
    folders = [tuple(name.split("/")[:-1]) for name in names]
    shared = _shared(folders)
    if wanted == EVERYTHING:
        return _whole(names, folders, EVERYTHING)
    for level in (shared, shared + 1):
        at = Counter(path[level] if len(path) > level else "" for path in folders)
        splitting = [name for name in at if role(name) is not None]
        asked = [] if wanted is None or level > shared else [str(name) for name in matching(at, wanted)]
        if not asked and len({role(name) for name in splitting}) < 2:
            if level == shared and wanted is None:
                _refuse_half_named(at, splitting, folders, level, where)
            continue
        splitting = list(dict.fromkeys(splitting + asked))
        others = [name or "no folder" for name in at if name not in splitting]
        if others and wanted is None:
            count = sum(at[name] for name in at if name not in splitting)
            raise ValueError(
                f"{where}: {_listed(splitting)} are splits, and beside them lie {count} images in {_listed(others)}; "
                f"give split={splitting[0]}, split={EVERYTHING} for everything, or the path of one folder"
            )
        if wanted is not None and not matching(splitting, wanted):
            raise _no_folder(where, wanted, at)
        return _classes_checked(_by_folder(names, folders, level, splitting), where)
    name = next((part for part in reversed(folders[0][:shared]) if role(part) is not None), None) if folders else None
    if wanted is not None and (name is None or not matching([name], wanted)):
        raise _no_folder(where, wanted, {path[shared] for path in folders if len(path) > shared} or folders[0][:shared])
    return _classes_checked(_whole(names, folders, name), where)


def _classes_checked(splits: Splits, where: str) -> Splits:
    """Raises `ValueError` for a folder `images` beside others, which may hold masks: it is hardly a class."""
    for split, parts in splits.parts.items():
        classes = sorted({part.classes[0] for part in parts if part.classes})
        if len(classes) > 1 and (plain := [name for name in classes if name.lower() in _PICTURES]):
            others = _listed([name for name in classes if name not in plain])
            raise ValueError(
                f"{where}: the folder {plain[0]} lies beside {others}" + (f" in {split}" if split else "") + ": are "
                f"they classes, or masks and the like? give split={EVERYTHING} for everything, or the path of one"
            )
    return splits


def _no_folder(where: str, wanted: str, names: Iterable[str]) -> NoSplitError:
    have = _listed(sorted(name for name in names if name), 20) or "none"
    return NoSplitError(f"{where}: no sub-folder for split '{wanted}' (sub-folders: {have}); unset split for all")


def _refuse_half_named(
    at: Mapping[str, int], splitting: Sequence[str], folders: Sequence[tuple[str, ...]], level: int, where: str
) -> None:
    """One folder `train` among others: a class (the vehicle) where it is one of many alike, else nobody can know."""
    remedy = f"give split=NAME, split={EVERYTHING} for everything, or the path of one folder"
    if len(splitting) == len(at) > 1:  # train2014 beside train2017
        raise ValueError(f"{where}: split could be each of {_listed(sorted(at))}; {remedy}")
    spoken: dict[tuple[str, ...], set[tuple[str, ...]]] = {}  # seg_train beside seg_test, but not test_tube
    for name in at:
        if roles := tuple(_roles(name)):
            spoken.setdefault(tuple(word for word in _words(name) if word not in _ROLES), set()).add(roles)
    alike = any(len(roles) > 1 for roles in spoken.values())
    if alike or (all(map(_roles, at)) and len(set().union(*spoken.values())) > 1):  # trainA, testB
        raise ValueError(f"{where}: cannot tell splits from classes in the folders {_listed(sorted(at))}; {remedy}")
    others = [name or "no folder" for name in at if name not in splitting]
    if len(splitting) != 1 or not others:
        return
    deep = {len(path) for path in folders if len(path) > level and path[level] == splitting[0]}
    if len(others) < 2 or not all(len(path) in deep for path in folders):
        raise ValueError(f"{where}: is {splitting[0]} a split or a class beside {_listed(others)}? {remedy}")


def _by_folder(
    names: Sequence[str], folders: Sequence[tuple[str, ...]], level: int, splitting: Sequence[str]
) -> Splits:
    parts: dict[str | None, list[Part]] = {name: [] for name in sorted(splitting)}
    beside = []
    for name, path in zip(names, folders, strict=True):
        if len(path) > level and path[level] in parts:
            parts[path[level]].append(Part(name, path[:level] + path[level + 1 :]))
        else:
            beside.append(name)
    return Splits(_without_shared(parts), beside)


def _whole(names: Sequence[str], folders: Sequence[tuple[str, ...]], split: str | None) -> Splits:
    parts: dict[str | None, list[Part]] = {split: [Part(*pair) for pair in zip(names, folders, strict=True)]}
    return Splits(_without_shared(parts), [])


def _without_shared(parts: dict[str | None, list[Part]]) -> dict[str | None, list[Part]]:
    """Folders that all classes share name none: `train/images/cat` and `test/images/dog` are cat and dog."""
    count = _shared([part.classes for group in parts.values() for part in group])
    return {split: [part._replace(classes=part.classes[count:]) for part in group] for split, group in parts.items()}


def _shared(folders: Sequence[tuple[str, ...]]) -> int:
    """How many leading folders all paths have in common."""
    if not folders:
        return 0
    low, high = min(folders), max(folders)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def of_tables(names: Sequence[str], wanted: str | None, where: str) -> Splits:
    """Splits of parquet or tar files by their names, `train-00000-of-00002`, or by a folder's, `Train/0.parquet`.

    A word in some names only makes no split: all files are read as one. Raises `ValueError` where two different words
    stand in some names and none in others, unless one of them is `wanted`.
    """

    def group(keys: Sequence[str | None]) -> dict[str | None, list[Part]]:
        return {
            key: [Part(name, ()) for name, its in zip(names, keys, strict=True) if its == key]
            for key in sorted(set(keys), key=lambda key: (_ORDER.get(role(key) or "", 3), str(key)))
        }

    keys = _table_keys(names)
    roles = {key for key in keys if key is not None}
    if wanted == EVERYTHING or not roles or (None in keys and len(roles) == 1):
        return Splits(group([EVERYTHING if wanted == EVERYTHING else "train"] * len(names)), [])
    if len(variants := _variants(names)) > 1:
        raise ValueError(
            f"{where}: the same files lie in {_listed(variants)}, as if each were a data set of its own; give the path "
            f"of one, or split={EVERYTHING} for everything"
        )
    beside = [name for name, key in zip(names, keys, strict=True) if key is None]
    if beside and wanted is None:
        raise ValueError(
            f"{where}: files of the splits {_listed(sorted(roles))}, and {len(beside)} of none ({_listed(beside)}); "
            f"give split=NAME, split={EVERYTHING} for everything, or a glob"
        )
    parts = group(keys)
    parts.pop(None, None)
    return Splits(parts, beside)


def _variants(names: Sequence[str]) -> list[str]:
    """Folders that hold files of one split by the same name: `64x64/train-0.parquet` and `256x256/train-0.parquet`."""
    places: dict[str, list[str]] = {}
    for name in names:
        *folders, file = name.split("/")
        if _roles(file):
            places.setdefault(file, []).append("/".join(folders) or ".")
    most = max((len(found) for found in places.values()), default=0)
    return next((sorted(found) for found in places.values() if len(found) == most), [])


def _table_keys(names: Sequence[str]) -> list[str | None]:
    """The word of each name that says its split; a word that all names share counts only where it is the only one."""
    found = []
    for name in names:
        *folders, file = name.split("/")
        inside = [folder for folder in folders if role(folder) is not None]
        found.append(inside[-1:] or [word for word in _words(file) if word in _ROLES])
    every = set(found[0]).intersection(*found) if len(names) > 1 else set()
    own = [[word for word in words if word not in every] for words in found]
    chosen = own if any(own) else found
    return ["-".join(dict.fromkeys(words)) or None for words in chosen]


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
