"""Which codes a run of a prior is trained on: kept beside its recipe, and compared when the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prior.data import Data
from prior.recipe import PriorRecipe
from tokenizers_vq.config import read_yaml
from tokenizers_vq.data import identity
from tokenizers_vq.data.shards import CodeShards
from tokenizers_vq.data.shards.files import shard_name
from tokenizers_vq.training.runs import has_checkpoint, kept_record
from tokenizers_vq.writing import write_atomically

FOLDERS = ("codes", "held_out_codes")


def check_codes(recipe: PriorRecipe, data: Data, out: Path) -> tuple[str, ...]:
    """The fields that name folders of codes and may differ from the kept recipe's, since they hold the same codes.

    Raises `ValueError`, which names the shard, where a run that has checkpoints began with other codes: the order of
    training and the rows that are held out depend on them.
    """
    path = out / "data.json"
    if not path.exists() or not has_checkpoint(out):
        return FOLDERS
    before = kept_record(path)
    remedy = "restore them, or give another --out"
    for name, (folder, shards) in _folders(recipe, data).items():
        then = before.get(name)
        if then is not None and shards is not None:
            files = _files(folder, shards)
            if other := identity.changed(then, identity.record(files, shards.label_names), files):
                raise ValueError(f"{folder} holds other codes than the run {out} began with: {other}: {remedy}")
    if before["size"] != len(data.rows):
        raise ValueError(
            f"{recipe.codes} has {len(data.rows)} rows to train on, the run {out} began with {before['size']}: {remedy}"
        )
    kept = read_yaml(out / "recipe.yaml") if (out / "recipe.yaml").is_file() else {}
    return tuple(name for name in FOLDERS if name in before or _same_place(kept.get(name), getattr(recipe, name)))


def keep_codes(recipe: PriorRecipe, data: Data, out: Path) -> None:
    """Write `data.json`: how many rows the run is trained on, and a record of each folder's shards."""
    record: dict[str, Any] = {"size": len(data.rows)}
    for name, (folder, shards) in _folders(recipe, data).items():
        kept = None if shards is None else identity.record(_files(folder, shards), shards.label_names)
        record[name] = kept
    write_atomically(out / "data.json", json.dumps(record) + "\n")


def _folders(recipe: PriorRecipe, data: Data) -> dict[str, tuple[str, CodeShards | None]]:
    held = None if recipe.held_out_codes is None else data.held
    return {"codes": (recipe.codes, data.shards), "held_out_codes": (recipe.held_out_codes or "", held)}


def _files(folder: str, shards: CodeShards) -> list[tuple[str, str]]:
    count = shards.info["shards"]
    names = [shard_name(part, count) for part in range(count)]
    return [(name, str(Path(folder) / name)) for name in names]


def _same_place(before: str | None, now: str | None) -> bool:
    return before is None or now is None or Path(before).resolve() == Path(now).resolve()
