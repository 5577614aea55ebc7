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
    if before["size"] != data.length:
        raise ValueError(
            f"{recipe.codes} has {data.length} rows to train on, the run {out} began with {before['size']}: {remedy}"
        )
    check_order(out, data)
    kept = read_yaml(out / "recipe.yaml") if (out / "recipe.yaml").is_file() else {}
    more = [name for name in _folders(recipe, data) if name not in FOLDERS and name in before]
    same = [name for name in FOLDERS if name in before or _same_place(kept.get(name), getattr(recipe, name))]
    return (*same, *more)


def check_order(out: Path, data: Data) -> None:
    """Raises `ValueError` where the run `out` has split and shuffled its codes otherwise than is done now.

    What it held out, it would be trained on.
    """
    path = out / "data.json"
    if path.exists() and has_checkpoint(out) and kept_record(path).get("order") != _order(data):
        raise ValueError(
            f"the run {out} began before so many codes were shuffled in blocks: its order and what it held out are no "
            f"longer known; begin anew with its weights (--init-from {out} --out ANOTHER)"
        )


def _order(data: Data) -> list[int] | None:
    return None if data.blocks is None else list(data.blocks)


def keep_codes(recipe: PriorRecipe, data: Data, out: Path) -> None:
    """Write `data.json`: how many rows the run is trained on, and a record of each folder's shards."""
    record: dict[str, Any] = {"size": data.length, "order": _order(data)}
    for name, (folder, shards) in _folders(recipe, data).items():
        kept = None if shards is None else identity.record(_files(folder, shards), shards.label_names)
        record[name] = kept
    write_atomically(out / "data.json", json.dumps(record) + "\n")


def _folders(recipe: PriorRecipe, data: Data) -> dict[str, tuple[str, CodeShards | None]]:
    held = None if recipe.held_out_codes is None else data.held
    more = {
        f"more_codes.{number}.codes": (folder.codes, one.shards)
        for number, (folder, one) in enumerate(zip(recipe.more_codes, data.parts[1:], strict=True))
    }
    return {"codes": (recipe.codes, data.shards), "held_out_codes": (recipe.held_out_codes or "", held), **more}


def _files(folder: str, shards: CodeShards) -> list[tuple[str, str]]:
    count = shards.info["shards"]
    names = [shard_name(part, count) for part in range(count)]
    return [(name, str(Path(folder) / name)) for name in names]


def _same_place(before: str | None, now: str | None) -> bool:
    return before is None or now is None or Path(before).resolve() == Path(now).resolve()
